//! Reads BTF, the kernel's description of its own types: where a field lies, what a tracepoint passes, which number a name has.
//!
//! ```text
//! header | types: 12 bytes and what their kind adds, one after the other, the first has number 1 | strings, each ends with 0
//! ```
//! Format: the kernel's `Documentation/bpf/btf.rst`. Whatever the bytes say, reading them ends, without a panic, and in memory that
//! their length bounds.

use std::ops::Range;

const MAGIC: u16 = 0xeb9f;
/// Modifiers between a name and what it means; kernels have a few.
const MODIFIERS_MAX: usize = 32;
/// Structs without a name within each other; kernels have three.
const NESTING_MAX: usize = 8;
/// Members that are looked at to find one: the largest struct of a kernel has some hundreds.
const MEMBERS_MAX: usize = 100_000;

/// Number of a type; 0 is `void`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TypeId(pub(crate) u32);

/// Kinds of types that have a meaning here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Int,
    Pointer,
    Struct,
    Union,
    Enum,
    Enum64,
    Typedef,
    Prototype,
    /// `const` and the like.
    Modifier,
    Other,
}

/// What is wrong with the bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Malformed(pub(crate) &'static str);

struct Type {
    kind: Kind,
    flag: bool,
    name: u32,
    /// Size, or the type that is meant.
    value: u32,
    /// What comes after the 12 bytes.
    body: Range<usize>,
}

/// A member of a struct.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Member {
    /// Bytes from the beginning of the struct.
    pub(crate) offset: u32,
    /// Its type.
    pub(crate) of: TypeId,
}

/// All types of a kernel.
pub(crate) struct Btf {
    bytes: Vec<u8>,
    strings: Range<usize>,
    types: Vec<Type>,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(word.try_into().ok()?))
}

fn usize_at(bytes: &[u8], at: usize) -> Option<usize> {
    u32_at(bytes, at).and_then(|value| usize::try_from(value).ok())
}

/// `length` bytes at `offset` behind the header, if they are there.
fn section(bytes: &[u8], header: usize, offset: usize, length: usize) -> Option<Range<usize>> {
    let start = header.checked_add(usize_at(bytes, offset)?)?;
    let end = start.checked_add(usize_at(bytes, length)?)?;
    (end <= bytes.len()).then_some(start..end)
}

/// A kind's number, and what it adds to the 12 bytes: once, and for each of its parts.
fn kind_of(number: u32) -> Option<(Kind, usize, usize)> {
    Some(match number {
        1 => (Kind::Int, 4, 0),
        2 => (Kind::Pointer, 0, 0),
        3 => (Kind::Other, 12, 0),
        4 => (Kind::Struct, 0, 12),
        5 => (Kind::Union, 0, 12),
        6 => (Kind::Enum, 0, 8),
        8 => (Kind::Typedef, 0, 0),
        9..=11 | 18 => (Kind::Modifier, 0, 0),
        13 => (Kind::Prototype, 0, 8),
        7 | 12 | 16 => (Kind::Other, 0, 0),
        14 | 17 => (Kind::Other, 4, 0),
        15 => (Kind::Other, 0, 12),
        19 => (Kind::Enum64, 0, 12),
        _ => return None,
    })
}

impl Btf {
    /// Reads the types of `/sys/kernel/btf/vmlinux`.
    ///
    /// # Errors
    /// They are cut short, of another byte order, or of a kind that is not known here.
    pub(crate) fn parse(bytes: Vec<u8>) -> Result<Self, Malformed> {
        let header = usize_at(&bytes, 4).ok_or(Malformed("it is too short"))?;
        if bytes.get(..2) != Some(&MAGIC.to_le_bytes()) {
            return Err(Malformed("it does not begin with BTF's magic number"));
        }
        let section = |offset, length| section(&bytes, header, offset, length).ok_or(Malformed("it is cut short"));
        let (types, strings) = (section(8, 12)?, section(16, 20)?);
        let types = read_types(&bytes, types)?;
        Ok(Self { bytes, strings, types })
    }

    fn get(&self, id: TypeId) -> Option<&Type> {
        self.types.get(usize::try_from(id.0).ok()?.checked_sub(1)?)
    }

    fn name(&self, offset: u32) -> &[u8] {
        let strings = &self.bytes[self.strings.clone()];
        let text = usize::try_from(offset).ok().and_then(|offset| strings.get(offset..)).unwrap_or(&[]);
        text.split(|byte| *byte == 0).next().unwrap_or(&[])
    }

    /// The first type of that name among those of some kinds.
    pub(crate) fn find(&self, kinds: &[Kind], name: &str) -> Option<TypeId> {
        let found = |ty: &Type| kinds.contains(&ty.kind) && self.name(ty.name) == name.as_bytes();
        let at = self.types.iter().position(found)?;
        u32::try_from(at + 1).ok().map(TypeId)
    }

    /// The type that a name or a modifier means; itself if it is neither.
    fn meant(&self, mut id: TypeId) -> Option<TypeId> {
        for _ in 0..MODIFIERS_MAX {
            let ty = self.get(id)?;
            if !matches!(ty.kind, Kind::Typedef | Kind::Modifier) {
                return Some(id);
            }
            id = TypeId(ty.value);
        }
        None
    }

    /// What a pointer points to, if it is one to a type that is known.
    pub(crate) fn pointee(&self, id: TypeId) -> Option<TypeId> {
        let ty = self.get(self.meant(id)?)?;
        if ty.kind == Kind::Pointer { self.meant(TypeId(ty.value)) } else { None }
    }

    /// Whether it is a struct of that name.
    pub(crate) fn is_struct(&self, id: TypeId, name: &str) -> bool {
        self.get(id).is_some_and(|ty| ty.kind == Kind::Struct && self.name(ty.name) == name.as_bytes())
    }

    /// Bytes of a number or pointer.
    pub(crate) fn size(&self, id: TypeId) -> Option<u32> {
        let ty = self.get(self.meant(id)?)?;
        match ty.kind {
            Kind::Int | Kind::Enum | Kind::Enum64 => Some(ty.value),
            Kind::Pointer => Some(8),
            _ => None,
        }
    }

    /// A member of a struct, also one within members that have no name. None if it does not lie on whole bytes.
    pub(crate) fn member(&self, of: TypeId, name: &str) -> Option<Member> {
        self.member_within(of, name, NESTING_MAX, &mut { MEMBERS_MAX })
    }

    fn member_within(&self, of: TypeId, name: &str, nesting: usize, budget: &mut usize) -> Option<Member> {
        let ty = self.get(self.meant(of)?)?;
        if !matches!(ty.kind, Kind::Struct | Kind::Union) {
            return None;
        }
        for entry in self.bytes[ty.body.clone()].chunks_exact(12) {
            *budget = budget.checked_sub(1)?;
            let (member_name, of, position) = (u32_at(entry, 0)?, TypeId(u32_at(entry, 4)?), u32_at(entry, 8)?);
            // Where bit fields are among the members, the upper 8 bits are the width.
            let (bits, width) = if ty.flag { (position & 0xff_ffff, position >> 24) } else { (position, 0) };
            let member_name = self.name(member_name);
            if member_name == name.as_bytes() {
                return (bits % 8 == 0 && width == 0).then_some(Member { offset: bits / 8, of });
            }
            if member_name.is_empty()
                && nesting > 0
                && let Some(member) = self.member_within(of, name, nesting - 1, budget)
            {
                return Some(Member { offset: member.offset.checked_add(bits / 8)?, ..member });
            }
        }
        None
    }

    /// Types of a function's parameters, given the type of a pointer to such functions. Their names are not in BTF.
    pub(crate) fn parameters(&self, function: TypeId) -> Option<Vec<TypeId>> {
        let prototype = self.get(self.pointee(function)?)?;
        if prototype.kind != Kind::Prototype {
            return None;
        }
        self.bytes[prototype.body.clone()].chunks_exact(8).map(|entry| u32_at(entry, 4).map(TypeId)).collect()
    }

    /// The number that a name has in an enumeration.
    pub(crate) fn number(&self, of: TypeId, name: &str) -> Option<u32> {
        let ty = self.get(of)?;
        let entry = if ty.kind == Kind::Enum64 { 12 } else { 8 };
        let mut entries = self.bytes[ty.body.clone()].chunks_exact(entry);
        let found = entries.find(|entry| u32_at(entry, 0).is_some_and(|at| self.name(at) == name.as_bytes()))?;
        u32_at(found, 4)
    }
}

fn read_types(bytes: &[u8], section: Range<usize>) -> Result<Vec<Type>, Malformed> {
    let (mut types, mut at) = (Vec::new(), section.start);
    let cut = Malformed("a type is cut short");
    while at < section.end {
        let word = |offset| u32_at(bytes, at + offset).ok_or(cut);
        let (name, info, value) = (word(0)?, word(4)?, word(8)?);
        let (kind, once, each) = kind_of(info >> 24 & 0x1f).ok_or(Malformed("a type is of an unknown kind"))?;
        let parts = usize::try_from(info & 0xffff).map_err(|_| cut)?;
        let body = at + 12..at + 12 + once + each * parts;
        if body.end > section.end {
            return Err(cut);
        }
        at = body.end;
        types.push(Type { kind, flag: info >> 31 == 1, name, value, body });
    }
    Ok(types)
}

#[cfg(test)]
#[path = "tests/btf.rs"]
mod tests;
