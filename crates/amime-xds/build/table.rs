//! The table of places where messages hold maps or packed messages.

use std::collections::BTreeMap;
use std::fmt::Write;

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FileDescriptorSet};

const ANY: &str = "google.protobuf.Any";

struct Field {
    number: i32,
    of: String,
    repeated: bool,
}

#[derive(Default)]
struct Message {
    fields: Vec<Field>,
    is_map_entry: bool,
}

/// Rust source of `MESSAGES`, sorted by name. A message from which neither a
/// map nor an `Any` can be reached is not in it: its bytes are canonical as
/// they are.
pub(crate) fn generate(set: &FileDescriptorSet) -> String {
    let mut messages = BTreeMap::new();
    for file in &set.file {
        for message in &file.message_type {
            collect(file.package(), message, &mut messages);
        }
    }
    let names = worth_a_visit(&messages);
    let index: BTreeMap<&str, usize> =
        names.iter().enumerate().map(|(i, name)| (name.as_str(), i)).collect();
    let mut source = String::from("static MESSAGES: &[Message] = &[\n");
    for name in &names {
        let fields = messages[name].fields.iter().filter_map(|f| entry(f, &messages, &index));
        let fields: Vec<_> = fields.collect();
        writeln!(source, "    Message {{ name: {name:?}, fields: &[{}] }},", fields.join(", "))
            .expect("writing to a string");
    }
    source.push_str("];\n");
    source
}

fn collect(scope: &str, message: &DescriptorProto, into: &mut BTreeMap<String, Message>) {
    let name = format!("{scope}.{}", message.name());
    let fields = message.field.iter().filter(|f| f.r#type() == Type::Message);
    let fields = fields.map(|f| Field {
        number: f.number(),
        of: f.type_name().trim_start_matches('.').to_owned(),
        repeated: f.label() == Label::Repeated,
    });
    let is_map_entry = message.options.as_ref().is_some_and(|o| o.map_entry());
    into.insert(name.clone(), Message { fields: fields.collect(), is_map_entry });
    for nested in &message.nested_type {
        collect(&name, nested, into);
    }
}

/// Names of messages from which a map or an `Any` can be reached.
fn worth_a_visit(messages: &BTreeMap<String, Message>) -> Vec<String> {
    let mut worth: BTreeMap<&str, bool> =
        messages.iter().map(|(n, m)| (n.as_str(), n == ANY || m.is_map_entry)).collect();
    loop {
        let mut grew = false;
        for (name, message) in messages {
            let reaches = message.fields.iter().any(|f| worth.get(f.of.as_str()) == Some(&true));
            if reaches && !worth[name.as_str()] {
                worth.insert(name, true);
                grew = true;
            }
        }
        if !grew {
            return worth.into_iter().filter(|(_, w)| *w).map(|(n, _)| n.to_owned()).collect();
        }
    }
}

fn entry(
    field: &Field,
    messages: &BTreeMap<String, Message>,
    index: &BTreeMap<&str, usize>,
) -> Option<String> {
    let target = index.get(field.of.as_str())?;
    let is_map = field.repeated && messages[&field.of].is_map_entry;
    let shape = if is_map {
        "Map"
    } else if field.of == ANY {
        "Any"
    } else {
        "Plain"
    };
    Some(format!("Field {{ number: {}, shape: Shape::{shape}, of: {target} }}", field.number))
}
