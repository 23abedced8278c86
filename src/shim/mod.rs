pub mod connection;
pub mod log;
pub mod machine;
