//! Numbers of the protocol. All integers on the wire are big-endian.

/// First word of the server's greeting: `NBDMAGIC`.
pub const MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second word of the greeting, and first of each option: `IHAVEOPT`.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// First word of an option's reply.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// First word of a request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// First word of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// First word of a chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Handshake flags, of the server and (the same bits, 32 bits wide) of the client.
pub mod handshake {
    /// Fixed newstyle negotiation.
    pub const FIXED_NEWSTYLE: u16 = 1;
    /// No 124 bytes of zeroes after `EXPORT_NAME`.
    pub const NO_ZEROES: u16 = 2;
}

/// Options of the negotiation.
pub mod option {
    /// Choose an export, the old way: no error can be told.
    pub const EXPORT_NAME: u32 = 1;
    /// End the negotiation.
    pub const ABORT: u32 = 2;
    /// List the exports.
    pub const LIST: u32 = 3;
    /// Begin TLS.
    pub const STARTTLS: u32 = 5;
    /// Tell about an export.
    pub const INFO: u32 = 6;
    /// Choose an export.
    pub const GO: u32 = 7;
    /// Replies in chunks.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// List the metadata contexts of an export.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Choose metadata contexts of an export.
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Kinds of an option's reply.
pub mod option_reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// One export.
    pub const SERVER: u32 = 2;
    /// Something about an export.
    pub const INFO: u32 = 3;
    /// One metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// Bit of all errors.
    pub const ERROR: u32 = 1 << 31;
    /// The option is not known.
    pub const ERR_UNSUP: u32 = ERROR | 1;
    /// The option is not allowed.
    pub const ERR_POLICY: u32 = ERROR | 2;
    /// The option is malformed.
    pub const ERR_INVALID: u32 = ERROR | 3;
    /// There is no such export.
    pub const ERR_UNKNOWN: u32 = ERROR | 6;
    /// The option is too large.
    pub const ERR_TOO_BIG: u32 = ERROR | 9;
}

/// Kinds of information about an export.
pub mod info {
    /// Size and flags.
    pub const EXPORT: u16 = 0;
    /// Its name.
    pub const NAME: u16 = 1;
    /// What it is, for people.
    pub const DESCRIPTION: u16 = 2;
    /// Smallest, preferred and largest size of requests.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags of an export.
pub mod flag {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1;
    /// No writes.
    pub const READ_ONLY: u16 = 1 << 1;
    /// `FLUSH` is served.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// Forced unit access is served.
    pub const SEND_FUA: u16 = 1 << 3;
    /// `TRIM` is served.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// `WRITE_ZEROES` is served.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// Structured replies may be unfragmented on demand.
    pub const SEND_DF: u16 = 1 << 7;
    /// Several connections see one disk, with one cache.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// `CACHE` is served.
    pub const SEND_CACHE: u16 = 1 << 10;
}

/// Commands.
pub mod command {
    /// Read.
    pub const READ: u16 = 0;
    /// Write; the data follows.
    pub const WRITE: u16 = 1;
    /// Disconnect. There is no reply.
    pub const DISC: u16 = 2;
    /// Make durable what was written.
    pub const FLUSH: u16 = 3;
    /// The range is not needed any more.
    pub const TRIM: u16 = 4;
    /// The range will be read.
    pub const CACHE: u16 = 5;
    /// The range reads as zeroes from now on.
    pub const WRITE_ZEROES: u16 = 6;
    /// What the metadata contexts say of a range.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of a command.
pub mod command_flag {
    /// Durable before the reply.
    pub const FUA: u16 = 1;
    /// Zeroes that take space.
    pub const NO_HOLE: u16 = 1 << 1;
    /// One chunk of data, or an error.
    pub const DF: u16 = 1 << 2;
    /// One extent of each context at most.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Zeroes only where that is fast.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Kinds of chunks of a structured reply.
pub mod chunk {
    /// Flag: the last of its reply.
    pub const DONE: u16 = 1;
    /// Nothing.
    pub const NONE: u16 = 0;
    /// Data at an offset.
    pub const OFFSET_DATA: u16 = 1;
    /// Zeroes at an offset.
    pub const OFFSET_HOLE: u16 = 2;
    /// Extents of one metadata context.
    pub const BLOCK_STATUS: u16 = 5;
    /// Bit of all errors.
    pub const ERROR: u16 = 1 << 15;
    /// An error of the whole request.
    pub const ERROR_ANY: u16 = ERROR | 1;
    /// An error at an offset.
    pub const ERROR_OFFSET: u16 = ERROR | 2;
}

/// Flags of an extent of `base:allocation`.
pub mod allocation {
    /// Not allocated.
    pub const HOLE: u32 = 1;
    /// Reads as zeroes.
    pub const ZERO: u32 = 2;
}

/// Errors of commands.
pub mod errno {
    /// Not permitted.
    pub const PERM: u32 = 1;
    /// Cannot be read or written.
    pub const IO: u32 = 5;
    /// No memory.
    pub const NOMEM: u32 = 12;
    /// A wrong request.
    pub const INVAL: u32 = 22;
    /// No space.
    pub const NOSPC: u32 = 28;
    /// Too large.
    pub const OVERFLOW: u32 = 75;
    /// Not served.
    pub const NOTSUP: u32 = 95;
    /// The server ends.
    pub const SHUTDOWN: u32 = 108;
}

/// The metadata context that says what is allocated, and what reads as zeroes.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// Longest name of an export or context.
pub const NAME_BYTES_MAX: usize = 4096;
/// Largest option that is read.
pub const OPTION_BYTES_MAX: usize = 64 * 1024;
/// Largest range of data that one request moves: what all known implementations allow.
pub const REQUEST_BYTES_MAX: u32 = 32 * 1024 * 1024;
