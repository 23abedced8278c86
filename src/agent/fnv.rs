//! FNV-1a in 128 bits (draft-eastlake-fnv), which the kubelet names pods of files by. Not for anything an enemy may choose.

/// The running hash.
#[derive(Debug, Clone, Copy)]
pub struct Fnv(u128);

impl Default for Fnv {
    fn default() -> Self {
        Fnv(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }
}

impl Fnv {
    /// Adds bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u128::from(*byte)).wrapping_mul(0x0100_0000_0000_0000_0000_013b);
        }
    }

    /// Adds a text so that its end shows: two lists of texts hash alike only if they are alike.
    pub fn text(&mut self, kind: u8, text: &str) {
        self.add(&[kind]);
        self.add(&text.len().to_le_bytes());
        self.add(text.as_bytes());
    }

    /// The hash of what was added.
    pub fn value(&self) -> u128 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_vector_comes_out() {
        let mut hash = Fnv::default();
        hash.add(b"a");
        assert_eq!(hash.value(), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
    }
}
