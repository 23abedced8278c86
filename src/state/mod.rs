//! What is on disk: the paths, the records, and the flight recorder. Nothing here decides anything.

pub mod flight;
pub mod model;
pub mod paths;
pub mod record;
pub mod spec;
