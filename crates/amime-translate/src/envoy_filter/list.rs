//! Operations on things in an order.

use amime_api::networking::PatchOperation;

/// Which items a patch is about.
pub(super) enum Anchor<F> {
    /// It names none.
    None,
    /// Those for which this holds.
    At(F),
}

/// Applies an operation that changes which items there are.
///
/// Without an anchor, before and after are the ends, and nothing is replaced
/// or removed. With one, the first item counts, except that all are removed.
pub(super) fn edit<T, F: Fn(&T) -> bool>(
    items: &mut Vec<T>,
    operation: PatchOperation,
    anchor: &Anchor<F>,
    new: impl FnOnce() -> Option<T>,
) {
    let found = |items: &[T]| match anchor {
        Anchor::None => None,
        Anchor::At(is_it) => items.iter().position(is_it),
    };
    let free = matches!(anchor, Anchor::None);
    let place = match operation {
        PatchOperation::Add => Some(items.len()),
        PatchOperation::InsertFirst => Some(0),
        PatchOperation::InsertAfter if free => Some(items.len()),
        PatchOperation::InsertAfter => found(items).map(|at| at + 1),
        PatchOperation::InsertBefore if free => Some(0),
        PatchOperation::InsertBefore => found(items),
        PatchOperation::Replace => {
            if let (Some(at), Some(new)) = (found(items), new()) {
                items[at] = new;
            }
            return;
        }
        PatchOperation::Remove => {
            if let Anchor::At(is_it) = anchor {
                items.retain(|item| !is_it(item));
            }
            return;
        }
        _ => None,
    };
    if let (Some(at), Some(new)) = (place, place.and_then(|_| new())) {
        items.insert(at, new);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(operation: PatchOperation, anchor: Option<&str>, want: &[&str]) {
        let mut items = vec!["a", "b", "b"];
        match anchor {
            None => edit(&mut items, operation, &Anchor::None::<fn(&&str) -> bool>, || Some("x")),
            Some(name) => {
                edit(&mut items, operation, &Anchor::At(|i: &&str| *i == name), || Some("x"));
            }
        }
        assert_eq!(items, want);
    }

    #[test]
    fn items_go_where_the_operation_says() {
        use PatchOperation::{Add, InsertAfter, InsertBefore, InsertFirst, Remove, Replace};
        check(Add, Some("a"), &["a", "b", "b", "x"]);
        check(InsertFirst, None, &["x", "a", "b", "b"]);
        check(InsertAfter, None, &["a", "b", "b", "x"]);
        check(InsertAfter, Some("a"), &["a", "x", "b", "b"]);
        check(InsertBefore, Some("b"), &["a", "x", "b", "b"]);
        check(InsertBefore, Some("z"), &["a", "b", "b"]);
        check(Replace, Some("b"), &["a", "x", "b"]);
        check(Replace, None, &["a", "b", "b"]);
        check(Remove, Some("b"), &["a"]);
        check(Remove, None, &["a", "b", "b"]);
    }
}
