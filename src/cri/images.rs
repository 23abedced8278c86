//! The ImageService, over the store and what pulls into it.

use super::{Answers, Cri, answer, pieces, status, until_closing};
use crate::criapi::image_service_server::ImageService;
use crate::criapi::{
    AuthConfig, FilesystemIdentifier, FilesystemUsage, Image, ImageFsInfoRequest, ImageFsInfoResponse, ImageSpec,
    ImageStatusRequest, ImageStatusResponse, ListImagesRequest, ListImagesResponse, PullImageRequest,
    PullImageResponse, RemoveImageRequest, RemoveImageResponse, StreamImagesRequest, StreamImagesResponse, UInt64Value,
};
use crate::engine::{blocking, in_use};
use crate::error::{Error, Kind, Result};
use crate::image::oci::Platform;
use crate::image::pull::{self, Given};
use crate::image::reference::{Reference, is_id};
use crate::image::registry::credentials::Secret;
use crate::image::store;
use crate::image::store::session::Silent;
use std::sync::Arc;
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

    /// Has an image in the store, and gives its id. Of what was imported no registry is asked: whoever imported it need not change what pulls
    /// before it runs. Dropped, it ends, unless another call waits for the same image.
    async fn pull(&self, request: PullImageRequest) -> Result<String> {
        let text = request.image.clone().unwrap_or_default().image;
        if is_id(&text) {
            let absent =
                || Error::not_found(format!("image {text:?} is not in the store, and an id names no registry"));
            return self.find_image(request.image).await?.map(|image| image.id.to_string()).ok_or_else(absent);
        }
        let name: Reference = text.parse()?;
        let (store, of) = (self.engine.images().clone(), name.clone());
        let named = blocking(move || store.named(&of)).await?;
        if let Some(named) = named.filter(|named| !named.pulled) {
            return Ok(named.image.to_string());
        }
        let request =
            pull::Request { name, platform: Platform::host(), given: given(request.auth)?, secrets: Vec::new() };
        let mut closing = self.closing.clone();
        tokio::select! {
            pulled = self.puller.pull(&request, Arc::new(Silent)) => pulled.map(|pulled| pulled.id.to_string()),
            () = until_closing(&mut closing) => Err(Error::new(Kind::Unavailable, "the daemon ends")),
        }
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

/// The credentials of a request, if it has any.
fn given(auth: Option<AuthConfig>) -> Result<Option<Given>> {
    let Some(auth) = auth else { return Ok(None) };
    let secret = Secret::of(&auth.username, &auth.password, &auth.auth, &auth.identity_token, &auth.registry_token)?;
    Ok(secret.map(|secret| Given { registry: auth.server_address, secret }))
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

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Result<Response<PullImageResponse>, Status> {
        let pulled = self.pull(request.into_inner()).await;
        pulled.map(|image_ref| Response::new(PullImageResponse { image_ref })).map_err(|e| status::pull_status(&e))
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
