//! What must hold whatever bytes come from outside: a function for each kind of input, which panics when it does not.
//!
//! `hack/fuzz TARGET` has libFuzzer look for such bytes (nightly, cargo-fuzz). The test below needs neither: it gives the same functions the
//! inputs kept in hack/lib/fuzz/corpus and some thousand mutations of them, which are the same in every run. What was ever found is a file
//! there, beside the ones that libFuzzer kept for reaching something new.

/// What is given bytes.
pub type Target = fn(&[u8]);

/// Every target, by the name of its directory of inputs.
pub const TARGETS: [(&str, Target); 9] = [
    ("spdy", crate::stream::fuzz::spdy),
    ("websocket", crate::stream::fuzz::websocket),
    ("layer", crate::image::unpack::fuzz::layer),
    ("document", crate::image::fuzz::document),
    ("manifest", crate::agent::fuzz::manifest),
    ("cri", crate::cri::fuzz::cri),
    ("wire", crate::shim::fuzz::wire),
    ("registry", crate::image::registry::fuzz::registry),
    ("cni", crate::network::cni::fuzz::cni),
];

/// Gives `bytes` to a target.
///
/// # Panics
/// When what must hold does not, and for a name that is none of [`TARGETS`].
pub fn run(target: &str, bytes: &[u8]) {
    let (_, target) = TARGETS.iter().find(|(name, _)| *name == target).expect("a target of the table");
    target(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::panic::catch_unwind;
    use std::path::{Path, PathBuf};
    use std::time::{Duration, Instant};

    /// How long one target's mutations may take; on a slow machine there are fewer of them.
    const TIME: Duration = Duration::from_secs(3);
    /// Mutations of each input.
    const MUTATIONS: usize = 200;
    /// The largest corpus of all targets together, in bytes: it is in the repository for ever.
    const MAX_CORPUS: u64 = 100 << 10;

    fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let root = std::env::var_os("CARGO_MANIFEST_DIR").expect("run by cargo, or set it");
        let directory = Path::new(&root).join("hack/lib/fuzz/corpus").join(target);
        let entries = fs::read_dir(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
        let mut inputs: Vec<_> = entries
            .map(|entry| entry.expect("an entry").path())
            .map(|path| (path.clone(), fs::read(&path).expect("a file")))
            .collect();
        inputs.sort();
        inputs
    }

    /// Numbers that are the same in every run (Marsaglia's xorshift64).
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, bound: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            usize::try_from(self.0 % bound.max(1) as u64).expect("below a usize")
        }
    }

    /// A few steps from `input`: bytes changed, taken out, doubled, and pieces of `other`.
    fn mutate(input: &[u8], other: &[u8], numbers: &mut Numbers) -> Vec<u8> {
        const BYTES: [u8; 12] = [0, 1, 0x7f, 0x80, 0xff, b'0', b'9', b'"', b'{', b'\n', b'/', b':'];
        let mut bytes = input.to_vec();
        for _ in 0..=numbers.below(4) {
            let at = numbers.below(bytes.len());
            let len = numbers.below(bytes.len() - at).min(64);
            match numbers.below(6) {
                0 => bytes.get_mut(at).into_iter().for_each(|byte| *byte ^= 1 << numbers.below(8)),
                1 => bytes.get_mut(at).into_iter().for_each(|byte| *byte = BYTES[numbers.below(BYTES.len())]),
                2 => drop(bytes.drain(at..at + len)),
                3 => bytes.extend_from_within(at..at + len),
                4 => bytes.truncate(at),
                _ => {
                    let from = numbers.below(other.len());
                    let piece = &other[from..from + numbers.below(other.len() - from).min(64)];
                    drop(bytes.splice(at..at + len, piece.iter().copied()));
                }
            }
        }
        bytes
    }

    fn replay(target: &str) {
        let inputs = corpus(target);
        let attempt = |bytes: &[u8], from: &Path| {
            let kept = bytes.to_vec();
            if catch_unwind(|| run(target, bytes)).is_err() {
                let shown: String = kept.iter().map(|byte| format!("{byte:02x}")).collect();
                panic!(
                    "{target}, from {}: put these bytes beside it and mend what they break: {shown}",
                    from.display()
                );
            }
        };
        inputs.iter().for_each(|(path, bytes)| attempt(bytes, path));
        attempt(b"", Path::new("nothing"));
        let (begun, mut numbers) = (Instant::now(), Numbers(0x9e37_79b9_7f4a_7c15));
        for _ in 0..MUTATIONS {
            for (path, bytes) in &inputs {
                let other = &inputs[numbers.below(inputs.len())].1;
                attempt(&mutate(bytes, other, &mut numbers), path);
                if begun.elapsed() > TIME {
                    return;
                }
            }
        }
    }

    macro_rules! replays {
        ($($test:ident: $target:literal,)*) => {$(
            #[test]
            fn $test() {
                replay($target);
            }
        )*};
    }

    replays! {
        a_spdy_clients_bytes_break_nothing: "spdy",
        a_websocket_clients_bytes_break_nothing: "websocket",
        a_layers_bytes_break_nothing: "layer",
        an_images_documents_break_nothing: "document",
        a_manifests_bytes_break_nothing: "manifest",
        a_cri_requests_bytes_break_nothing: "cri",
        a_peers_bytes_on_the_shims_socket_break_nothing: "wire",
        a_registrys_configuration_and_answers_break_nothing: "registry",
        a_plugins_answer_breaks_nothing: "cni",
    }

    #[test]
    fn every_target_has_inputs_and_all_of_them_are_small() {
        let sizes = TARGETS.map(|(target, _)| corpus(target).iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>());
        assert!(sizes.iter().all(|size| *size > 0), "{sizes:?}");
        assert!(sizes.iter().sum::<u64>() <= MAX_CORPUS, "{sizes:?}: hack/fuzz --minimise");
    }
}
