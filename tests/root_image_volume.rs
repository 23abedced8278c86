//! Image volumes: files of an image in a container, by the CRI and by a manifest; read-only, and nothing else of the host.
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod fixtures;

use fixtures::cri::{Node, log_text};
use fixtures::evil_tar::{Image, Layer, Tar, layout, write_dir};
use fixtures::machine::{Machine, Running, pod};
use podwright::criapi::{ImageSpec, Mount, RemoveImageRequest};
use tonic::Code;

/// A machine with busybox and an image of two layers, the upper of which hides a file and a directory; and one of a single layer.
fn machine() -> (Machine, [Image; 2]) {
    let lower = Tar::new()
        .file("a", b"lower")
        .file("hidden", b"x")
        .dir("dir", 0o755)
        .file("dir/f", b"1")
        .dir("gone", 0o755)
        .file("gone/f", b"1")
        .symlink("out", "/../../../..")
        .symlink("link", "dir");
    let upper = Tar::new().file("a", b"upper").file(".wh.hidden", b"").file(".wh.gone", b"");
    let several = Image::new("docker.io/library/data:1", &[Layer::plain(&lower), Layer::gzip(&upper)]);
    let one = Image::new("docker.io/library/one:1", &[Layer::plain(&lower)]);
    let mut machine = Machine::with_busybox();
    let dir = machine.dir("data");
    write_dir(&layout(&[several, one]), &dir);
    machine.import(&dir);
    let several = Image::new("docker.io/library/data:1", &[Layer::plain(&lower), Layer::gzip(&upper)]);
    (machine, [several, Image::new("docker.io/library/one:1", &[Layer::plain(&lower)])])
}

fn mount(image: &str, path: &str, sub_path: &str) -> Mount {
    Mount {
        container_path: path.to_owned(),
        image: Some(ImageSpec { image: image.to_owned(), ..ImageSpec::default() }),
        image_sub_path: sub_path.to_owned(),
        readonly: true,
        ..Mount::default()
    }
}

#[tokio::test]
async fn a_container_reads_the_files_of_an_image_and_its_status_says_which() {
    let (machine, [several, one]) = machine();
    let mut node = Node::of(machine, |_| {}).await;
    let sandbox = node.sandbox("p");
    let pod = node.run_pod(sandbox.clone()).await.unwrap();
    let text = "cd /v; echo $(cat a) $(ls) $(cat /part/f) $(cat /link/f) $(cat /one/hidden) $(ls /out); \
                touch /v/new /v/a /part/new 2>&1 | grep -c Read-only; grep -c ' /v ' /proc/mounts";
    let mut config = fixtures::cri::script("c", text);
    config.mounts = vec![
        mount("data:1", "/v", ""),
        mount(&several.id(), "/part", "dir"),
        mount("data:1", "/link", "link"),
        mount("one:1", "/one", ""),
        mount("data:1", "/out", "out"),
    ];
    let id = node.create(&pod, config.clone(), sandbox.clone()).await.unwrap();
    assert_eq!(node.create(&pod, config.clone(), sandbox.clone()).await.unwrap(), id, "a retry");
    node.start_container(&id).await.unwrap();
    let ended = node.exited(&id).await;
    let log = log_text(std::path::Path::new(&ended.log_path), "stdout");
    // The link to far above leads to the root of the image, and no further.
    assert_eq!(log, "upper a dir link out 1 1 x a dir link out\n3\n1\n", "{ended:?}");
    let of = |path: &str| ended.mounts.iter().find(|m| m.container_path == path).unwrap().clone();
    assert_eq!(of("/v").image.unwrap().image_ref, several.id());
    assert_eq!((of("/one").image.unwrap().image_ref, of("/part").image_sub_path.as_str()), (one.id(), "dir"));

    // While a container has it, it stays.
    let remove = RemoveImageRequest { image: Some(ImageSpec { image: "one:1".to_owned(), ..ImageSpec::default() }) };
    assert_eq!(node.images.remove_image(remove.clone()).await.unwrap_err().code(), Code::FailedPrecondition);
    node.remove_container(&id).await.unwrap();
    node.images.remove_image(remove).await.unwrap();

    // What cannot be.
    for (name, mount, words) in [
        ("absent", mount("absent:1", "/v", ""), "ImageVolumeMountFailed"),
        ("writable", Mount { readonly: false, ..mount("data:1", "/v", "") }, "readonly"),
        ("above", mount("data:1", "/v", "../.."), "without '..'"),
        ("absolute", mount("data:1", "/v", "/etc"), "relative"),
        ("nothing", mount("data:1", "/v", "absent"), "no directory \"absent\""),
        ("file", mount("data:1", "/v", "a"), "no directory \"a\""),
        ("hidden", mount("data:1", "/v", "gone"), "no directory \"gone\""),
    ] {
        let mut config = fixtures::cri::script(name, "true");
        config.mounts = vec![mount];
        let e = node.create(&pod, config, sandbox.clone()).await.unwrap_err();
        assert!(e.message().contains(words), "{name}: {e:?}");
    }
    // Behind a link it is looked for when it is mounted.
    let mut config = fixtures::cri::script("linked", "true");
    config.mounts = vec![mount("data:1", "/v", "link/absent")];
    let id = node.create(&pod, config, sandbox.clone()).await.unwrap();
    let e = node.start_container(&id).await.unwrap_err();
    assert!(e.message().contains("\"link/absent\" of the image for /v"), "{e:?}");
    node.stop_pod(&pod).await.unwrap();
    node.remove_pod(&pod).await.unwrap();
    node.stop().await;
}

#[test]
fn a_manifest_mounts_an_image_as_a_volume() {
    let (machine, _) = machine();
    let spec = |mounts: &str, volume: &str| {
        pod(&format!(
            "  restartPolicy: Never\n  volumes:\n  - name: data\n    image: {volume}\n  containers:\n  - name: c\n    image: busybox\n    \
             command: [sh, -c, 'cat /v/a /part/f; touch /v/b']\n    volumeMounts:\n{mounts}"
        ))
    };
    let mounts = "    - {name: data, mountPath: /v}\n    - {name: data, mountPath: /part, subPath: dir}\n";
    let run = |text: &str| {
        let manifest = machine.manifest(text);
        Running::of(machine.podwright(["run", "--no-daemon", manifest.to_str().unwrap()])).wait()
    };
    let ran = run(&spec(mounts, "{reference: 'data:1'}"));
    assert_eq!(ran.code(1).stdout, "upper1", "{}", ran.stderr);
    assert!(ran.stderr.contains("Read-only file system"), "{}", ran.stderr);
    run(&spec(mounts, "{reference: 'absent:1', pullPolicy: Never}"))
        .refused(&["volume \"data\"", "PullPolicy is Never"]);
    run(&spec("    - {name: data, mountPath: /v, mountPropagation: HostToContainer}\n", "{reference: 'data:1'}"))
        .refused(&["mountPropagation", "nothing is mounted in an image"]);
    let checked = Running::of(
        machine.podwright(["check", machine.manifest(&spec(mounts, "{reference: data}")).to_str().unwrap()]),
    );
    assert!(checked.wait().stdout.contains("image data"));
}
