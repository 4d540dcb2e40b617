import pytest

from nml_jax.prepare import clutter


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("train/cat/1.jpg", ""),
        ("train/@eaDir/1.jpg", clutter.OF_SYSTEM),
        ("__MACOSX/train/1.jpg", clutter.OF_SYSTEM),
        ("train/cat/THUMBS.DB", clutter.OF_SYSTEM),
        ("train/cat/1.jpg:Zone.Identifier", clutter.OF_SYSTEM),
        ("train/cat/1.jpg@SynoResource", clutter.OF_SYSTEM),
        ("train/cat/._1.jpg", clutter.HIDDEN),
        (".cache/1.jpg", clutter.HIDDEN),
        ("train/recycler/1.jpg", ""),  # a class may be called so
        ("train/thumbnails/1.jpg", ""),
        ("train/cat/@eaDir", ""),  # a file
    ],
)
def test_why_a_file_is_left_out(path, reason):
    assert clutter.find_clutter_in_path(path) == reason


def test_files_are_counted_at_any_depth(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("1", "a/2", "a/b/3"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "a" / "link").symlink_to(tmp_path)
    assert clutter.count_files(tmp_path) == 4
    assert clutter.count_files(tmp_path / "1") == clutter.count_files(tmp_path / "a" / "link") == 1
    assert clutter.count_files(tmp_path / "a" / "b") == 1
