//! Reads the state dict of an old (non-zip) PyTorch file without running anything in it.
//!
//! Such a file is five pickles (magic number, protocol, system, state dict, list of storage keys)
//! and then per key an i64 element count and the little-endian elements. This is an interpreter of
//! exactly the pickle instructions that occur there, over plain values: the only functions it knows
//! are `OrderedDict()` and `_rebuild_tensor_v2`, both as data. Every length is checked against the
//! file before anything is allocated.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::rc::Rc;

use candle_core::{Device, Tensor};
use common::{Error, Result};

const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// Most instructions of a file; the real one has 11,000.
const MAX_INSTRUCTIONS: usize = 1 << 16;
/// Deepest nesting of values; a state dict needs four.
const MAX_DEPTH: usize = 8;
const MAX_BYTES: u64 = 2 << 30;

#[derive(Debug, Clone)]
enum Value {
    /// None, booleans and whatever else has no meaning here.
    Nothing,
    Int(i64),
    Long(Vec<u8>),
    Text(Rc<str>),
    Global(Rc<str>),
    Tuple(Rc<Vec<Value>>),
    List(Rc<Vec<Value>>),
    /// Pairs in order.
    Dict(Rc<Vec<(Value, Value)>>),
    /// Key of a storage of f32.
    Storage(Rc<str>),
    Tensor(Rc<View>),
    Mark,
}

/// A tensor as a part of a storage.
#[derive(Debug)]
struct View {
    storage: Rc<str>,
    offset: usize,
    shape: Vec<usize>,
    stride: Vec<usize>,
}

impl View {
    /// Positions of the tensor's elements in its storage of `stored` elements, row by row; `None`
    /// where it reaches beyond or has more elements than the storage.
    fn places(&self, stored: usize) -> Option<Vec<usize>> {
        let count = self.shape.iter().try_fold(1usize, |n, &side| n.checked_mul(side))?;
        if count > stored {
            return None;
        }
        let mut last = self.offset;
        for (&side, &stride) in self.shape.iter().zip(&self.stride) {
            last = last.checked_add(side.checked_sub(1)?.checked_mul(stride)?)?;
        }
        if last >= stored {
            return None;
        }
        let mut places = vec![self.offset];
        for (&side, &stride) in self.shape.iter().zip(&self.stride) {
            places = places
                .iter()
                .flat_map(|&first| (0..side).map(move |at| first + at * stride))
                .collect();
        }
        Some(places)
    }
}

/// The float tensors of the file by name; integer tensors such as step counters are left out.
///
/// # Errors
/// [`Error::Asset`] for anything but an old PyTorch state dict of f32 tensors; [`Error::Io`].
pub fn read(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let size = std::fs::metadata(path).map_err(Error::io(path))?.len();
    let bad = |problem: String| {
        Error::asset(
            path.display().to_string(),
            problem,
            "use the file of the pinned package, an old PyTorch state dict of f32 tensors",
        )
    };
    if size > MAX_BYTES {
        return Err(bad(format!("it has {} MB, at most {} are read", size >> 20, MAX_BYTES >> 20)));
    }
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    parse(&bytes).map_err(bad)
}

/// [`read`] of bytes; the error is what is wrong.
///
/// # Errors
/// A sentence part for [`Error::Asset`].
pub fn parse(bytes: &[u8]) -> std::result::Result<BTreeMap<String, Tensor>, String> {
    let mut reader = Reader { bytes, at: 0, made: 0 };
    match reader.pickle()? {
        Value::Long(digits) if digits == MAGIC => {}
        _ => return Err("it does not begin with PyTorch's magic number".into()),
    }
    match reader.pickle()? {
        Value::Int(1001) => {}
        other => return Err(format!("its protocol is {other:?}, expected 1001")),
    }
    reader.pickle()?;
    let Value::Dict(state) = reader.pickle()? else {
        return Err("its fourth pickle is no state dict".into());
    };
    let Value::List(keys) = reader.pickle()? else {
        return Err("its fifth pickle is no list of storages".into());
    };
    let mut wanted: HashMap<Rc<str>, &[u8]> = HashMap::new();
    let mut lengths: HashMap<Rc<str>, usize> = HashMap::new();
    for (_, value) in state.iter() {
        if let Value::Tensor(view) = value {
            lengths.insert(view.storage.clone(), 4);
        }
    }
    for key in keys.iter() {
        let Value::Text(key) = key else { return Err("a storage key is no text".into()) };
        let count = reader.take(8)?;
        let count = i64::from_le_bytes(count.try_into().map_err(|_| "a count is cut off")?);
        let count = usize::try_from(count).map_err(|_| format!("a storage of {count} elements"))?;
        // float storages are those that a tensor of the state dict names; others are counters
        let width = lengths.get(key).copied().unwrap_or(8);
        let bytes = count.checked_mul(width).ok_or("a storage is too long")?;
        wanted.insert(key.clone(), reader.take(bytes)?);
    }
    let mut tensors = BTreeMap::new();
    for (name, value) in state.iter() {
        let (Value::Text(name), Value::Tensor(view)) = (name, value) else { continue };
        let storage = wanted.get(&view.storage).ok_or_else(|| {
            format!("tensor {name} lies in storage {}, which is absent", view.storage)
        })?;
        let places = view.places(storage.len() / 4).ok_or_else(|| {
            format!("tensor {name} of shape {:?} reaches beyond its storage", view.shape)
        })?;
        let value = |at: usize| {
            let b = &storage[4 * at..];
            f32::from_le_bytes([b[0], b[1], b[2], b[3]])
        };
        let values: Vec<f32> = places.into_iter().map(value).collect();
        let tensor = Tensor::from_vec(values, &view.shape[..], &Device::Cpu)
            .map_err(|error| format!("tensor {name}: {error}"))?;
        tensors.insert(name.to_string(), tensor);
    }
    Ok(tensors)
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    made: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> std::result::Result<&'a [u8], String> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| format!("it ends after {} bytes", self.bytes.len()))?;
        let part = &self.bytes[self.at..end];
        self.at = end;
        Ok(part)
    }

    fn uint(&mut self, width: usize) -> std::result::Result<usize, String> {
        let bytes = self.take(width)?;
        Ok(bytes.iter().rev().fold(0, |sum, &byte| sum << 8 | usize::from(byte)))
    }

    fn line(&mut self) -> std::result::Result<&'a str, String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().take(256).position(|&b| b == b'\n').ok_or("a name has no end")?;
        self.at += end + 1;
        std::str::from_utf8(&rest[..end]).map_err(|_| "a name is not UTF-8".into())
    }

    /// Runs one pickle to its end.
    fn pickle(&mut self) -> std::result::Result<Value, String> {
        let mut stack: Vec<Value> = Vec::new();
        let mut memo: HashMap<usize, Value> = HashMap::new();
        let missing = || "an instruction finds too few values".to_owned();
        loop {
            self.made += 1;
            if self.made > MAX_INSTRUCTIONS {
                return Err(format!("it has more than {MAX_INSTRUCTIONS} instructions"));
            }
            let code = self.take(1)?[0];
            let value = match code {
                b'.' => return stack.pop().ok_or_else(missing),
                0x80 => {
                    self.take(1)?;
                    continue;
                }
                0x8a => {
                    let count = self.uint(1)?;
                    Value::Long(self.take(count)?.to_vec())
                }
                b'K' => Value::Int(self.uint(1)? as i64),
                b'M' => Value::Int(self.uint(2)? as i64),
                b'J' => Value::Int(i64::from(self.uint(4)? as u32 as i32)),
                b'N' | 0x88 | 0x89 => Value::Nothing,
                b'X' => {
                    let count = self.uint(4)?;
                    let text = std::str::from_utf8(self.take(count)?);
                    Value::Text(text.map_err(|_| "a text is not UTF-8")?.into())
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    Value::Global(format!("{module}.{name}").into())
                }
                b')' => Value::Tuple(Rc::default()),
                b']' => Value::List(Rc::default()),
                b'}' => Value::Dict(Rc::default()),
                b'(' => Value::Mark,
                b'q' | b'r' => {
                    let place = self.uint(if code == b'q' { 1 } else { 4 })?;
                    memo.insert(place, stack.last().ok_or_else(missing)?.clone());
                    continue;
                }
                b'h' | b'j' => {
                    let place = self.uint(if code == b'h' { 1 } else { 4 })?;
                    memo.get(&place).ok_or("a memo that was never written is read")?.clone()
                }
                b't' => Value::Tuple(Rc::new(shallow(above_mark(&mut stack)?)?)),
                0x85 | 0x86 => {
                    let count = usize::from(code - 0x84);
                    let first = stack.len().checked_sub(count).ok_or_else(missing)?;
                    Value::Tuple(Rc::new(shallow(stack.split_off(first))?))
                }
                b'Q' => storage(&stack.pop().ok_or_else(missing)?)?,
                b'R' => {
                    let arguments = stack.pop().ok_or_else(missing)?;
                    let function = stack.pop().ok_or_else(missing)?;
                    call(&function, &arguments)?
                }
                b's' => {
                    let value = stack.pop().ok_or_else(missing)?;
                    let key = stack.pop().ok_or_else(missing)?;
                    extend_dict(&mut stack, shallow(vec![key, value])?)?;
                    continue;
                }
                b'u' => {
                    let pairs = shallow(above_mark(&mut stack)?)?;
                    extend_dict(&mut stack, pairs)?;
                    continue;
                }
                b'e' => {
                    let values = shallow(above_mark(&mut stack)?)?;
                    match stack.last_mut() {
                        Some(Value::List(list)) => Rc::make_mut(list).extend(values),
                        _ => return Err("values are appended to what is no list".into()),
                    }
                    continue;
                }
                // attributes of the state dict (its version): of no use here
                b'b' => {
                    stack.pop().ok_or_else(missing)?;
                    continue;
                }
                other => {
                    return Err(format!("instruction {other:#04x} has no place in a state dict"));
                }
            };
            stack.push(value);
        }
    }
}

/// The values, if none is nested too deeply: dropping a value must not run out of stack.
fn shallow(values: Vec<Value>) -> std::result::Result<Vec<Value>, String> {
    fn depth(value: &Value) -> usize {
        let deepest = |values: &[Value]| values.iter().map(depth).max().unwrap_or(0);
        1 + match value {
            Value::Tuple(values) | Value::List(values) => deepest(values),
            Value::Dict(pairs) => {
                pairs.iter().map(|(k, v)| depth(k).max(depth(v))).max().unwrap_or(0)
            }
            _ => 0,
        }
    }
    match values.iter().map(depth).max() {
        Some(depth) if depth >= MAX_DEPTH => Err("its values are nested too deeply".into()),
        _ => Ok(values),
    }
}

fn above_mark(stack: &mut Vec<Value>) -> std::result::Result<Vec<Value>, String> {
    let mark = stack.iter().rposition(|value| matches!(value, Value::Mark));
    let values = stack.split_off(mark.ok_or("a mark is absent")? + 1);
    stack.pop();
    Ok(values)
}

fn extend_dict(stack: &mut [Value], values: Vec<Value>) -> std::result::Result<(), String> {
    match stack.last_mut() {
        Some(Value::Dict(dict)) => {
            let mut values = values.into_iter();
            while let (Some(key), Some(value)) = (values.next(), values.next()) {
                Rc::make_mut(dict).push((key, value));
            }
            Ok(())
        }
        _ => Err("an entry is set in what is no dict".into()),
    }
}

/// A persistent id: ("storage", type, key, device, element count, view).
fn storage(id: &Value) -> std::result::Result<Value, String> {
    let Value::Tuple(id) = id else { return Err("a persistent id is no tuple".into()) };
    match &id[..] {
        [Value::Text(kind), Value::Global(class), Value::Text(key), ..] if &**kind == "storage" => {
            match &**class {
                "torch.FloatStorage" => Ok(Value::Storage(key.clone())),
                "torch.LongStorage" => Ok(Value::Nothing),
                other => Err(format!("a storage is a {other}, expected torch.FloatStorage")),
            }
        }
        _ => Err("a persistent id is no storage".into()),
    }
}

fn call(function: &Value, arguments: &Value) -> std::result::Result<Value, String> {
    let (Value::Global(name), Value::Tuple(arguments)) = (function, arguments) else {
        return Err("what is called is no function".into());
    };
    match (&**name, &arguments[..]) {
        ("collections.OrderedDict", []) => Ok(Value::Dict(Rc::default())),
        (
            "torch._utils._rebuild_tensor_v2",
            [storage, Value::Int(offset), Value::Tuple(shape), Value::Tuple(stride), ..],
        ) => {
            let Value::Storage(key) = storage else { return Ok(Value::Nothing) };
            let sizes = |values: &[Value]| {
                values
                    .iter()
                    .map(|value| match value {
                        Value::Int(side) => usize::try_from(*side).ok(),
                        _ => None,
                    })
                    .collect::<Option<Vec<usize>>>()
                    .ok_or("a tensor's shape or stride is no tuple of sizes")
            };
            let (shape, stride) = (sizes(shape)?, sizes(stride)?);
            if shape.len() != stride.len() {
                return Err("a tensor's stride does not fit its shape".into());
            }
            let offset = usize::try_from(*offset).map_err(|_| "a tensor's offset is negative")?;
            Ok(Value::Tensor(Rc::new(View { storage: key.clone(), offset, shape, stride })))
        }
        (other, _) => Err(format!("it calls {other}, which a state dict has no need of")),
    }
}
