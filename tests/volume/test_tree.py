from __future__ import annotations

import pytest
from modelvold.errors import Exhausted, Malformed
from modelvold.layer.extent import ContentOffset
from modelvold.layer.raw import toc_of_raw
from modelvold.layer.toc import Entry, Kind, Toc
from modelvold.volume import tree as tree_module
from modelvold.volume.tree import File, Folder, Link, Symlink, Tree, merge


def raw(path: str, mtime: int = 0, size: int = 1) -> Toc:
    return toc_of_raw(path, size, 0o644, mtime)


def shown(tree: Tree) -> list[tuple[bytes, type]]:
    return [(path, type(node)) for path, node in tree.walk()]


def test_layers_become_one_tree_with_folders_between() -> None:
    tree = merge([raw("b/c/two", size=2), raw("a", size=3), raw("b/one")])

    assert shown(tree) == [(b"a", File), (b"b", Folder), (b"b/c", Folder), (b"b/c/two", File), (b"b/one", File)]
    assert tree.nodes == 6
    assert [(path, file.layer, file.size) for path, file in tree.files()] == [
        (b"a", 1, 3),
        (b"b/c/two", 0, 2),
        (b"b/one", 2, 1),
    ]


def test_names_are_sorted_as_bytes() -> None:
    tree = merge([raw(name) for name in ("é", "z", "Z", "-", "a b", "a")])
    assert [node.name for node in tree.root.children] == [b"-", b"Z", b"a", b"a b", b"z", "é".encode()]


def test_an_unnamed_folder_is_roots_and_as_new_as_the_newest_below() -> None:
    tree = merge([raw("a/b/old", mtime=5), raw("a/b/c/new", mtime=9), raw("a/x", mtime=7), raw("z", mtime=11)])
    folders = {path: node for path, node in tree.walk() if isinstance(node, Folder)}

    assert {path: node.mtime for path, node in folders.items()} == {b"a": 9, b"a/b": 9, b"a/b/c": 9}
    assert tree.root.mtime == 11
    assert {(node.mode, node.uid, node.gid) for node in folders.values()} == {(0o755, 0, 0)}


def test_a_named_folder_is_as_its_entry_says_whenever_that_comes() -> None:
    folder = Entry("d", Kind.DIRECTORY, mode=0o700, uid=7, gid=8, mtime=3)
    for entries in ((folder, Entry("d/f", mtime=9)), (Entry("d/f", mtime=9), folder)):
        tree = merge([Toc(entries, 0)])
        (shown_folder,) = tree.root.children
        assert isinstance(shown_folder, Folder)
        assert (shown_folder.mode, shown_folder.uid, shown_folder.gid, shown_folder.mtime) == (0o700, 7, 8, 3)
        assert tree.root.mtime == 9


def test_a_folder_may_be_named_by_two_layers() -> None:
    tree = merge([Toc((Entry("d", Kind.DIRECTORY, mode=mode), Entry(f"d/{mode}")), 0) for mode in (0o700, 0o711)])
    path, node = next(tree.walk())
    assert isinstance(node, Folder)
    assert (path, node.mode) == (b"d", 0o711)
    assert tree.nodes == 4


def root_of(*entries: Entry) -> Folder:
    return merge([Toc(entries, 0)]).root


def test_the_root_is_as_its_entry_says_and_the_last_that_says_so_counts() -> None:
    said = Entry("", Kind.DIRECTORY, mode=0o700, uid=7, gid=8, mtime=3)
    file = Entry("f", mtime=9)
    for entries in ((said, file), (file, said)):
        root = root_of(*entries)
        assert (root.name, root.mode, root.uid, root.gid, root.mtime) == (b"", 0o700, 7, 8, 3)
        assert len(root.children) == 1
    later = Entry("", Kind.DIRECTORY, mode=0o711)
    tree = merge([Toc((said,), 0), Toc((file,), 0), Toc((later,), 0)])
    assert (tree.root.mode, tree.root.mtime, tree.nodes) == (0o711, 0, 2)


@pytest.mark.parametrize("kind", [Kind.FILE, Kind.SYMLINK, Kind.HARDLINK])
def test_only_a_folder_is_the_root(kind: Kind) -> None:
    with pytest.raises(Malformed, match="empty component"):
        root_of(Entry("f"), Entry("", kind, link="f"))


def test_a_symbolic_link_is_kept_as_it_is() -> None:
    tree = merge([raw("a"), Toc((Entry("l", Kind.SYMLINK, link="../outside", uid=5),), 0)])
    assert tree.root.children[1] == Symlink(b"l", 0o777, 5, 0, 0, 1, b"../outside")


def test_a_hard_link_is_another_name_of_its_file_whatever_its_header_says() -> None:
    file = Entry("m/weights", mode=0o640, uid=1, gid=2, mtime=3, size=4)
    links = [Entry(path, Kind.HARDLINK, mode=0o777, uid=9, mtime=99, size=9, link="m/weights") for path in ("a/l", "z")]
    tree = merge([raw("other"), Toc((file, *links), 4)])
    nodes = dict(tree.walk())

    shared = nodes[b"m/weights"]
    assert shared == File(b"weights", 0o640, 1, 2, 3, 1, ContentOffset(0), 4)
    assert [(path, node.name) for path, node in nodes.items() if isinstance(node, Link) and node.file is shared] == [
        (b"a/l", b"l"),
        (b"z", b"z"),
    ]
    assert nodes[b"a"].mtime == nodes[b"z"].mtime == 3
    assert [path for path, _ in tree.files()] == [b"m/weights", b"other"]
    assert tree.nodes == 7


LINKED = (
    Entry("f"),
    Entry("d", Kind.DIRECTORY),
    Entry("s", Kind.SYMLINK, link="f"),
    Entry("h", Kind.HARDLINK, link="f"),
)


@pytest.mark.parametrize(
    "target", ["", "absent", "l", "later", "d", "s", "h", "f/f", "/f", "./f", "d/../f", "f\0", "theirs"]
)
def test_a_hard_link_to_anything_but_an_earlier_file_of_its_layer_is_refused_by_name(target: str) -> None:
    layer = Toc((*LINKED, Entry("l", Kind.HARDLINK, link=target), Entry("later")), 0)
    with pytest.raises(Malformed) as refusal:
        merge([raw("theirs"), layer])
    expected = f"layer 1, 'l': a hard link to {target!r}, which is no earlier file of the layer"
    assert refusal.value.message == expected
    assert refusal.value.remedy


@pytest.mark.parametrize("path", ["f", "d", "s", "h", "f/x"])
def test_a_hard_link_claims_its_path_like_a_file(path: str) -> None:
    with pytest.raises(Malformed, match="both claim the path"):
        root_of(*LINKED, Entry(path, Kind.HARDLINK, link="f"))


def test_a_hard_link_is_no_folder() -> None:
    with pytest.raises(Malformed, match=r"layer 0 \('h'\) and layer 1 \('h/f'\) both claim the path 'h'"):
        merge([Toc(LINKED, 0), raw("h/f")])


def test_the_order_of_disjoint_layers_changes_nothing_but_their_numbers() -> None:
    paths = ["a/b", "a/c/d", "e"]
    one, other = merge([raw(path) for path in paths]), merge([raw(path) for path in reversed(paths)])
    assert shown(one) == shown(other)


def test_no_layers_are_an_empty_tree() -> None:
    assert merge([]) == Tree(Folder(b"", 0o755, 0, 0, 0, ()), 1)


@pytest.mark.parametrize(
    ("first", "second", "claimed"),
    [("a/b", "a/b", "a/b"), ("a", "a/b", "a"), ("a/b", "a", "a"), ("a/b/c", "a/b", "a/b"), ("a/b", "a/b/c/d", "a/b")],
)
def test_a_path_claimed_twice_is_refused_naming_both(first: str, second: str, claimed: str) -> None:
    with pytest.raises(Malformed) as refusal:
        merge([raw("other"), raw(first), raw(second)])
    assert refusal.value.message == f"layer 1 ({first!r}) and layer 2 ({second!r}) both claim the path {claimed!r}"
    assert refusal.value.remedy


def test_a_link_is_no_folder() -> None:
    link = Toc((Entry("l", Kind.SYMLINK, link="d"),), 0)
    with pytest.raises(Malformed, match=r"layer 0 .* layer 1 .* 'l'"):
        merge([link, raw("l/f")])


LONG = "x" * 255


@pytest.mark.parametrize(
    "path", [LONG, "é" * 127, "/".join("d" * 256), "/".join([LONG] * 15) + "/" + "x" * 255, "a\nb", "...", ".a", "..b"]
)
def test_names_up_to_the_kernels_bounds_are_shown(path: str) -> None:
    assert [found for found, _ in merge([raw(path)]).files()] == [path.encode()]


def test_a_name_that_is_no_text_keeps_its_bytes() -> None:
    assert [found for found, _ in merge([raw("\udcff")]).files()] == [b"\xff"]


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("", "empty"),
        ("/etc/passwd", "empty"),
        ("a//b", "empty"),
        ("a/", "empty"),
        ("..", r"`\.\.`"),
        ("a/../b", r"`\.\.`"),
        ("./a", r"`\.`"),
        ("a\0b", "NUL"),
        ("x" * 256, "longer than 255"),
        ("é" * 128, "longer than 255"),
        ("/".join("d" * 257), "deeper than 256"),
        ("/".join([LONG] * 16) + "/x", "longer than 4095"),
        ("\ud800", "no valid text"),
    ],
)
def test_paths_that_cannot_be_shown_are_refused_by_name(path: str, why: str) -> None:
    with pytest.raises(Malformed, match=why) as refusal:
        merge([raw("fine"), raw(path)])
    assert refusal.value.message.startswith("layer 1, ")


@pytest.mark.parametrize(
    "entry",
    [
        Entry("f", size=1025),
        Entry("f", size=-1),
        Entry("f", size=513, offset=ContentOffset(512)),
        Entry("f", size=1, offset=ContentOffset(-512)),
        Entry("f", size=1, offset=ContentOffset(100)),
        Entry("f", uid=-1),
        Entry("f", gid=0xFFFFFFFF),
        Entry("l", Kind.SYMLINK, link=""),
        Entry("l", Kind.SYMLINK, link="a\0b"),
        Entry("l", Kind.SYMLINK, link="x" * 4096),
    ],
)
def test_entries_that_cannot_be_shown_are_refused_by_name(entry: Entry) -> None:
    with pytest.raises(Malformed, match=f"layer 0, '{entry.path}'"):
        merge([Toc((entry,), 1024)])


def test_more_nodes_than_allowed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_module, "MOST_NODES", 5)
    assert merge([raw("a/b/c/d")]).nodes == 5
    links = [Entry(f"{n}", Kind.HARDLINK, link="f") for n in range(4)]
    assert merge([Toc((Entry("f"), *links[:3]), 0)]).nodes == 5
    with pytest.raises(Exhausted, match="more than 5"):
        merge([Toc((Entry("f"), *links), 0)])
    with pytest.raises(Exhausted, match="more than 5"):
        merge([raw("a/b/c/d"), raw("e")])
