//! The one file of a folder, read with the `safetensors` crate.

use crate::{Error, Result};
use safetensors::{Dtype, SafeTensors};
use std::path::Path;

pub(super) struct Safetensors {
    bytes: Vec<u8>,
}

impl Safetensors {
    pub(super) fn open(path: &Path) -> Result<Self> {
        Ok(Self { bytes: std::fs::read(path).map_err(Error::io(path))? })
    }

    fn parsed(&self) -> Result<SafeTensors<'_>> {
        SafeTensors::deserialize(&self.bytes)
            .map_err(|e| Error::asset("safetensors", e.to_string(), "fetch it again"))
    }

    pub(super) fn check(&self, expected: &[(String, Vec<usize>)]) -> Result<()> {
        for (name, shape) in expected {
            if self.shape(name)? != *shape {
                return Err(Error::asset(name, "wrong shape", "use another file"));
            }
        }
        Ok(())
    }

    pub(super) fn shape(&self, name: &str) -> Result<Vec<usize>> {
        let file = self.parsed()?;
        let tensor =
            file.tensor(name).map_err(|e| Error::asset(name, e.to_string(), "use another file"))?;
        Ok(tensor.shape().to_vec())
    }

    pub(super) fn to_f32(&self, name: &str) -> Result<Vec<f32>> {
        let file = self.parsed()?;
        let tensor =
            file.tensor(name).map_err(|e| Error::asset(name, e.to_string(), "use another file"))?;
        if tensor.dtype() != Dtype::F32 {
            return Err(Error::asset(name, "not f32", "use another file"));
        }
        Ok(tensor
            .data()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect())
    }
}
