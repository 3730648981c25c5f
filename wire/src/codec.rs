//! The messages in gRPC's frames: checked as they are decoded, bytes of disks not copied.

use std::marker::PhantomData;

use bytes::{Buf, Bytes};
use landfall_model::{Error, ErrorKind, Result};
use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use crate::message::{FromAgent, FromGateway};
use crate::raw;
use crate::status::to_status;

/// Longest message of a call that is not a link, in bytes: a request for a certificate, or the certificate.
pub(crate) const CALL_BYTES_MAX: usize = 64 * 1024;

/// What can be sent and received.
pub(crate) trait Wire: Sized + Send + Sync + 'static {
    /// The message as prost encodes it.
    type Raw: Message;
    fn into_raw(self) -> Self::Raw;
    fn from_bytes(bytes: Bytes) -> Result<Self>;
}

impl Wire for FromAgent {
    type Raw = raw::AgentMessage;
    fn into_raw(self) -> Self::Raw {
        self.into_raw()
    }
    fn from_bytes(bytes: Bytes) -> Result<Self> {
        Self::decode(bytes)
    }
}

impl Wire for FromGateway {
    type Raw = raw::GatewayMessage;
    fn into_raw(self) -> Self::Raw {
        self.into_raw()
    }
    fn from_bytes(bytes: Bytes) -> Result<Self> {
        Self::decode(bytes)
    }
}

macro_rules! plain {
    ($($name:ident),*) => {$(
        impl Wire for raw::$name {
            type Raw = Self;
            fn into_raw(self) -> Self {
                self
            }
            fn from_bytes(bytes: Bytes) -> Result<Self> {
                let wrong = "the other side of the connection sent what cannot be";
                Self::decode(bytes).map_err(|e| Error::with_source(ErrorKind::Corrupt, wrong, e))
            }
        }
    )*};
}

plain!(Enroll, Renew, Certified);

/// Sends `E`, receives `D`.
pub(crate) struct WireCodec<E, D>(PhantomData<fn() -> (E, D)>);

/// One direction of a codec.
pub(crate) struct Half<T>(PhantomData<fn() -> T>);

impl<E, D> WireCodec<E, D> {
    pub(crate) fn new() -> Self {
        Self(PhantomData)
    }
}

impl<E: Wire, D: Wire> Codec for WireCodec<E, D> {
    type Encode = E;
    type Decode = D;
    type Encoder = Half<E>;
    type Decoder = Half<D>;

    fn encoder(&mut self) -> Half<E> {
        Half(PhantomData)
    }

    fn decoder(&mut self) -> Half<D> {
        Half(PhantomData)
    }
}

impl<E: Wire> Encoder for Half<E> {
    type Item = E;
    type Error = Status;

    fn encode(&mut self, item: E, buffer: &mut EncodeBuf<'_>) -> std::result::Result<(), Status> {
        let raw = item.into_raw();
        buffer.reserve(raw.encoded_len());
        raw.encode(buffer).map_err(|e| Status::internal(e.to_string()))
    }
}

impl<D: Wire> Decoder for Half<D> {
    type Item = D;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> std::result::Result<Option<D>, Status> {
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        D::from_bytes(bytes).map(Some).map_err(|e| to_status(&e))
    }
}
