//! The ImageService, over the store: what was imported. Pulling is not in this version.

use super::status::unimplemented;
use super::{Answers, Cri, answer, pieces};
use crate::criapi::image_service_server::ImageService;
use crate::criapi::{
    FilesystemIdentifier, FilesystemUsage, Image, ImageFsInfoRequest, ImageFsInfoResponse, ImageSpec,
    ImageStatusRequest, ImageStatusResponse, ListImagesRequest, ListImagesResponse, PullImageRequest,
    PullImageResponse, RemoveImageRequest, RemoveImageResponse, StreamImagesRequest, StreamImagesResponse, UInt64Value,
};
use crate::engine::{blocking, in_use};
use crate::error::{Error, Kind, Result};
use crate::image::store;
use tonic::{Request, Response, Status};

impl Cri {
    /// The image of a name, id or digest, if it is there.
    async fn find_image(&self, spec: Option<ImageSpec>) -> Result<Option<store::Image>> {
        let text = spec.unwrap_or_default().image;
        if text.is_empty() {
            return Err(Error::invalid("image.image is empty"));
        }
        let store = self.engine.images().clone();
        blocking(move || match store.lookup(&text) {
            Err(e) if e.kind() == Kind::NotFound => Ok(None),
            found => found.map(Some),
        })
        .await
    }

    async fn images(&self, filter: Option<ImageSpec>) -> Result<Vec<Image>> {
        if let Some(spec) = filter.filter(|spec| !spec.image.is_empty()) {
            return Ok(self.find_image(Some(spec)).await?.into_iter().map(answer::image).collect());
        }
        let store = self.engine.images().clone();
        let all = blocking(move || store.list()).await?;
        Ok(all.into_iter().map(answer::image).collect())
    }

    async fn image_status_of(&self, request: ImageStatusRequest) -> Result<ImageStatusResponse> {
        let Some(image) = self.find_image(request.image).await? else { return Ok(ImageStatusResponse::default()) };
        let mut info = std::collections::BTreeMap::new();
        if request.verbose {
            let text = serde_json::json!({
                "platform": image.platform,
                "created": image.created,
                "imageSpec": image.config,
                "layers": image.layers,
                "compressedBytes": image.compressed_bytes,
            });
            info.insert("info".to_owned(), text.to_string());
        }
        Ok(ImageStatusResponse { image: Some(answer::image(image)), info })
    }

    /// With all its names, whichever way it was asked for.
    async fn drop_image(&self, spec: Option<ImageSpec>) -> Result<()> {
        let Some(image) = self.find_image(spec).await? else { return Ok(()) };
        let (store, paths) = (self.engine.images().clone(), self.engine.paths().clone());
        self.to_the_end(blocking(move || match store.remove(&image.id.to_string(), &|| in_use::in_use(&paths)) {
            Err(e) if e.kind() == Kind::NotFound => Ok(()), // another call was faster
            removed => removed.map(|_| ()),
        }))
        .await
    }

    async fn image_usage(&self) -> Result<ImageFsInfoResponse> {
        let store = self.engine.images().clone();
        let usage = blocking(move || store.usage()).await?;
        let filesystem = FilesystemUsage {
            timestamp: self.engine.now_ns(),
            fs_id: Some(FilesystemIdentifier { mountpoint: self.engine.paths().images().display().to_string() }),
            used_bytes: Some(UInt64Value { value: usage.bytes }),
            inodes_used: Some(UInt64Value { value: usage.inodes }),
        };
        // Writable layers are on the same one; both lists say so.
        Ok(ImageFsInfoResponse { image_filesystems: vec![filesystem.clone()], container_filesystems: vec![filesystem] })
    }
}

#[tonic::async_trait]
impl ImageService for Cri {
    type StreamImagesStream = Answers<StreamImagesResponse>;

    async fn list_images(&self, request: Request<ListImagesRequest>) -> Result<Response<ListImagesResponse>, Status> {
        let filter = request.into_inner().filter.and_then(|filter| filter.image);
        super::answer(self.images(filter).await.map(|images| ListImagesResponse { images }))
    }

    async fn stream_images(
        &self,
        request: Request<StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        let filter = request.into_inner().filter.and_then(|filter| filter.image);
        let images = self.images(filter).await.map_err(|e| super::status::status(&e))?;
        Ok(pieces(images, |images| StreamImagesResponse { images }))
    }

    async fn image_status(
        &self,
        request: Request<ImageStatusRequest>,
    ) -> Result<Response<ImageStatusResponse>, Status> {
        super::answer(self.image_status_of(request.into_inner()).await)
    }

    /// Answers for an image that is there: whoever imported it need not change what pulls before it runs.
    async fn pull_image(&self, request: Request<PullImageRequest>) -> Result<Response<PullImageResponse>, Status> {
        match self.find_image(request.into_inner().image).await {
            Ok(None) => Err(unimplemented("PullImage (of an image that was not imported)")),
            found => super::answer(found.map(|image| PullImageResponse {
                image_ref: image.map(|image| image.id.to_string()).unwrap_or_default(),
            })),
        }
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Result<Response<RemoveImageResponse>, Status> {
        super::answer(self.drop_image(request.into_inner().image).await.map(|()| RemoveImageResponse {}))
    }

    async fn image_fs_info(&self, _: Request<ImageFsInfoRequest>) -> Result<Response<ImageFsInfoResponse>, Status> {
        super::answer(self.image_usage().await)
    }
}
