//! Protobuf messages, field by field, as far as ONNX files need them: read without being loaded, copied, written.

use std::io::{self, BufRead, Read, Seek};

/// What is left of a protobuf message.
pub(in crate::runtime) struct Message<'r, R> {
    pub(in crate::runtime) reader: &'r mut R,
    pub(in crate::runtime) left: u64,
}

/// A field's value. Bytes, of a nested message or of a number of fixed size, are still to be read.
#[derive(Clone, Copy)]
pub(in crate::runtime) enum Value {
    Number(u64),
    Bytes(u64),
    Fixed(u64),
}

impl<R: BufRead + Seek> Message<'_, R> {
    fn byte(&mut self) -> io::Result<u8> {
        self.left = self.left.checked_sub(1).ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut byte = [0];
        self.reader.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    fn varint(&mut self) -> io::Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(io::ErrorKind::InvalidData.into())
    }

    fn skip(&mut self, length: u64) -> io::Result<()> {
        self.left = self.left.checked_sub(length).ok_or(io::ErrorKind::UnexpectedEof)?;
        self.reader.seek_relative(i64::try_from(length).map_err(|_| io::ErrorKind::InvalidData)?)
    }

    /// The next field's number and value; `None` at the message's end.
    fn field(&mut self) -> io::Result<Option<(u64, Value)>> {
        if self.left == 0 {
            return Ok(None);
        }
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => Value::Fixed(8),
            2 => Value::Bytes(self.varint()?),
            5 => Value::Fixed(4),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        Ok(Some((key >> 3, value)))
    }

    /// Reads a nested message of `length` bytes.
    pub(in crate::runtime) fn nested<T>(
        &mut self,
        length: u64,
        read: impl FnOnce(Message<'_, R>) -> io::Result<T>,
    ) -> io::Result<T> {
        self.left = self.left.checked_sub(length).ok_or(io::ErrorKind::UnexpectedEof)?;
        read(Message { reader: &mut *self.reader, left: length })
    }

    /// Goes through the fields: `inside` reads the nested messages it wants and returns whether it did.
    pub(in crate::runtime) fn fields(
        &mut self,
        mut inside: impl FnMut(&mut Self, u64, &Value) -> io::Result<bool>,
    ) -> io::Result<()> {
        while let Some((number, value)) = self.field()? {
            let read = inside(self, number, &value)?;
            if let (Value::Bytes(length) | Value::Fixed(length), false) = (value, read) {
                self.skip(length)?;
            }
        }
        Ok(())
    }

    /// The text that the next `length` bytes are.
    pub(in crate::runtime) fn text(&mut self, length: u64) -> io::Result<String> {
        self.nested(length, |text| {
            let mut bytes = Vec::new();
            text.copy(&mut bytes)?;
            String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
        })
    }

    /// The numbers that the next `length` bytes are.
    pub(in crate::runtime) fn numbers(&mut self, length: u64) -> io::Result<Vec<u64>> {
        self.nested(length, |mut packed| {
            let mut numbers = Vec::new();
            while packed.left > 0 {
                numbers.push(packed.varint()?);
            }
            Ok(numbers)
        })
    }

    /// Appends all bytes to `target`.
    pub(in crate::runtime) fn copy(self, target: &mut Vec<u8>) -> io::Result<()> {
        let read = self.reader.take(self.left).read_to_end(target)?;
        if read as u64 == self.left { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// Appends a field to `target` as it is; what is left of it has then been read.
    pub(in crate::runtime) fn copy_field(
        &mut self,
        number: u64,
        value: Value,
        target: &mut Vec<u8>,
    ) -> io::Result<bool> {
        match value {
            Value::Number(value) => put_number(target, number, value),
            Value::Bytes(length) => {
                put_varint(target, number << 3 | 2);
                put_varint(target, length);
                self.nested(length, |bytes| bytes.copy(target))?;
            }
            Value::Fixed(length) => {
                put_varint(target, number << 3 | if length == 8 { 1 } else { 5 });
                self.nested(length, |bytes| bytes.copy(target))?;
            }
        }
        Ok(true)
    }
}

/// Appends a field of a number.
pub(in crate::runtime) fn put_number(target: &mut Vec<u8>, field: u64, value: u64) {
    put_varint(target, field << 3);
    put_varint(target, value);
}

/// Appends a field of bytes.
pub(in crate::runtime) fn put_bytes(target: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_varint(target, field << 3 | 2);
    put_varint(target, bytes.len() as u64);
    target.extend(bytes);
}

fn put_varint(target: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        target.push(value as u8 | 0x80);
        value >>= 7;
    }
    target.push(value as u8);
}
