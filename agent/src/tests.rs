//! Whole cycles: real files as disks, a gateway in memory that keeps what it is sent.

mod cycles;
mod gateway;
mod histories;
mod looping;
mod machine;
mod obeying;
mod orders;
mod rounds;
mod watches;
