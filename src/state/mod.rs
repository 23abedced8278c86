//! What is on disk: the paths, the records, and the flight recorder. Nothing here decides anything.

pub mod model;
pub mod paths;
pub mod record;
