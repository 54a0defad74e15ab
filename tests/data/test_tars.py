"""Tars read by position, against a reader of a few lines; and tars that are cut, damaged, or hold other things."""

import gzip
import io
import json
import os
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from siglightning.data.images import BadSampleError, decode
from siglightning.data.pictograms import PictogramArchive
from siglightning.data.sources import Members, TarSource
from siglightning.data.sources.webdataset import find_tars


def pixels(number):
    return PictogramArchive.open().read_image(number * 30).permute(1, 2, 0).numpy()


def picture(number, kind="JPEG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels(number)).save(buffer, kind)
    return buffer.getvalue()


def write_tar(path, files):
    """A tar of (name, content), as `tar` itself or img2dataset would write it."""
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return path


def by_hand(path):
    """Samples of a whole tar: key -> suffix -> content."""
    found = {}
    with tarfile.open(path) as tar:
        for member in tar.getmembers():
            key, _, suffix = member.name.partition(".")
            found.setdefault(key, {})[suffix] = tar.extractfile(member).read()
    return found


def img2dataset_files(shard, count):
    """The files of a shard as img2dataset names and orders them: nine digits, .jpg, .json, .txt."""
    for number in range(count):
        key, caption = f"{shard:05d}{number:04d}", f"drawing {number} of shard {shard}, für alle"
        about = {"caption": caption, "key": key, "status": "success", "url": "https://example.org/1.jpg", "width": 64}
        yield f"{key}.jpg", picture(shard * 10 + number)
        yield f"{key}.json", json.dumps(about, indent=4).encode()
        yield f"{key}.txt", caption.encode()


SIZES = (7, 1, 12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "train"
    root.mkdir()
    for shard, count in enumerate(SIZES):
        write_tar(root / f"{shard:05d}.tar", img2dataset_files(shard, count))
        (root / f"{shard:05d}_stats.json").write_text("{}")  # img2dataset leaves these beside its tars
    return root


def open_all(folder, **options):
    return TarSource(find_tars(str(folder)), **options)


def test_the_layout_of_img2dataset(folder):
    source = open_all(folder)
    assert len(source) == sum(SIZES)
    assert source.bounds.tolist() == [0, 7, 8, 20]
    index = 0
    for shard in range(3):
        for key, files in by_hand(folder / f"{shard:05d}.tar").items():
            raw = source.read(index)
            assert source.key(index) == f"{shard:05d}.tar/{key}"
            assert raw.image == files["jpg"]
            assert raw.captions == [files["txt"].decode()] == [json.loads(files["json"])["caption"]]
            expected = np.asarray(Image.open(io.BytesIO(files["jpg"])).convert("RGB"), dtype=int)
            assert np.abs(decode(raw.image).permute(1, 2, 0).numpy() - expected).max() <= 4  # two decoders round
            index += 1
    assert index == len(source)


def test_captions_and_labels_of_other_files(tmp_path):
    files = []
    for number in range(6):
        about = {
            "alt": f"alt {number}",
            "said": [f"one {number}", f"two {number}"],
            "tags": ["cat", "dog"][: number % 3],
        }
        files += [
            (f"./deep/{number}.PNG", picture(number, "PNG")),
            (f"./deep/{number}.cls", f"{number % 2}\n".encode()),
        ]
        files += [(f"./deep/{number}.json", json.dumps(about).encode()), (f"./deep/{number}.seg.png", b"a mask")]
    path = write_tar(tmp_path / "a.tar", files)
    names = ["cat", "dog", "owl"]
    source = TarSource([path], Members(captions=["json:said", "json:alt"], label="cls"), names)
    assert (source.class_names, source.one_label) == (names, True)
    for number in range(6):
        raw = source.read(number)
        assert source.key(number) == f"a.tar/deep/{number}"
        np.testing.assert_array_equal(decode(raw.image).permute(1, 2, 0), pixels(number))
        assert raw.captions == [f"one {number}", f"two {number}", f"alt {number}"]
        assert raw.labels == [number % 2]
    weighed = TarSource([path], Members(captions=["json:alt", "json:said"], weights={"json:said": 3.0}))
    assert weighed.read(2).weights == [1.0, 3.0, 3.0]
    tagged = TarSource([path], Members(captions=[], label="json:tags", multi_label=True), names)
    assert [tagged.read(number).labels for number in range(3)] == [[], [0], [0, 1]]
    assert not tagged.one_label
    single = TarSource([path], Members(captions=[], label="json:tags"), names)
    assert single.read(1).labels == [0]
    for number, text in ((0, "labels: 0 where"), (2, "labels: 2 where")):
        with pytest.raises(BadSampleError, match=text):
            single.read(number)


def files_before(path, cut):
    """What a cut tar still holds whole: key -> suffixes, by the positions of the whole tar."""
    with tarfile.open(path) as tar:
        ends = [(member.name, member.offset_data + member.size) for member in tar.getmembers()]
    found = {}
    for name, end in ends:
        key, _, suffix = name.partition(".")
        if end <= cut:
            found.setdefault(key, set()).add(suffix)
    return found


@pytest.mark.parametrize("shift", [0, 37])
def test_a_cut_tar_gives_what_lies_before_the_cut_and_one_bad_sample(tmp_path, shift):
    files = [file for file in img2dataset_files(0, 2) if "json" not in file[0]]
    whole, cut = write_tar(tmp_path / "whole.tar", files), tmp_path / "cut.tar"
    with tarfile.open(whole) as tar:
        end = max(member.offset_data + -(-member.size // 512) * 512 for member in tar.getmembers())
    content, good = whole.read_bytes(), write_tar(tmp_path / "good.tar", img2dataset_files(1, 3))
    counts = set()
    for length in range(shift, end + 512, 512):  # up to the block of zeros that ends a tar
        cut.write_bytes(content[:length])
        source = TarSource([cut, good])
        read, bad = [], []
        for index in range(len(source)):
            try:
                read.append((source.key(index), source.read(index).image))
            except BadSampleError as error:
                bad.append((source.key(index), error.reason))
        complete = {
            key: by_hand(whole)[key]["jpg"] for key, has in files_before(whole, length).items() if len(has) == 2
        }
        assert [key for key, _ in read] == [f"cut.tar/{key}" for key in complete] + [
            f"good.tar/00001000{n}" for n in range(3)
        ]
        assert [image for _, image in read][: len(complete)] == list(complete.values())
        assert [reason for _, reason in bad] == ["truncated tar"]
        assert bad[0][0].startswith("cut.tar/")
        assert source.bounds.tolist() == [0, len(source) - 3, len(source)]
        counts.add(len(complete))
    assert counts == {0, 1, 2}


def test_what_is_no_tar_is_one_bad_sample(folder, tmp_path):
    for name, content in (("page.tar", b"<html>404</html>" * 100), ("empty.tar", b"")):
        (tmp_path / name).write_bytes(content)
    source = TarSource([tmp_path / "page.tar", *find_tars(str(folder)), tmp_path / "empty.tar"])
    assert len(source) == sum(SIZES) + 2
    for index in (0, len(source) - 1):
        with pytest.raises(BadSampleError, match=r"truncated tar: .* ends or is damaged at byte 0"):
            source.read(index)


def test_a_damaged_header_ends_a_tar(folder, tmp_path):
    content = bytearray((folder / "00002.tar").read_bytes())
    with tarfile.open(folder / "00002.tar") as tar:
        place = tar.getmember("000020007.jpg").offset
    content[place : place + 512] = b"?" * 512
    (tmp_path / "damaged.tar").write_bytes(content)
    source = TarSource([tmp_path / "damaged.tar"])
    assert len(source) == 8
    with pytest.raises(BadSampleError, match=f"truncated tar: .* damaged at byte {place:,}"):
        source.read(7)
    for index in range(7):
        assert source.read(index).image == by_hand(folder / "00002.tar")[f"00002{index:04d}"]["jpg"]


def beside(suffix, *contents):
    """Good pictures, each with another file."""
    for number, content in enumerate(contents):
        yield from ((f"{number}.jpg", picture(0)), (f"{number}.{suffix}", content))


def test_every_kind_of_bad_sample_has_its_reason(tmp_path):
    good = picture(0)
    files = [("00.jpg", good), ("00.txt", b"fine"), ("01.jpg", good), ("02.txt", b"alone"), ("03.jpg", good)]
    files += [("03.txt", b"  \n"), ("04.jpg", good), ("04.txt", b"caf\xe9"), ("05.jpg", b"<html>"), ("05.txt", b"page")]
    source = TarSource([write_tar(tmp_path / "0.tar", files)])
    assert [source.key(index) for index in range(len(source))] == [f"0.tar/0{n}" for n in range(6)]
    assert source.read(0).captions == ["fine"]
    expected = {1: "missing member: no .txt beside .jpg", 2: "missing member: no picture beside .txt"}
    expected |= {3: "empty caption", 4: "not UTF-8"}
    for index, text in expected.items():
        with pytest.raises(BadSampleError, match=text):
            source.read(index)
    with pytest.raises(BadSampleError, match="no picture"):
        decode(source.read(5).image)
    about = beside("json", b'{"a": "x"}', b'{"a": ', b'{"a": "caf\xe9"}', b"[1]", b'{"b": 1}')
    source = TarSource([write_tar(tmp_path / "1.tar", about)], Members(captions=["json:a"]))
    assert source.read(0).captions == ["x"]
    for index, text in {1: "damaged: .json", 2: "not UTF-8", 3: "empty caption", 4: "empty caption"}.items():
        with pytest.raises(BadSampleError, match=text):
            source.read(index)
    strange = beside("cls", b"dog", b"owl", b"7")
    source = TarSource([write_tar(tmp_path / "2.tar", strange)], Members(captions=[], label="cls"), ["cat", "dog"])
    assert source.read(0).labels == [1]
    for index in (1, 2):
        with pytest.raises(BadSampleError, match=r"unknown class: '?(owl|7)"):
            source.read(index)


def test_of_two_files_with_one_name_the_first_counts(tmp_path):
    files = [("0.jpg", picture(0)), ("0.jpg", picture(1)), ("0.txt", b"x"), ("1.jpg", picture(2)), ("1.txt", b"y")]
    source = TarSource([write_tar(tmp_path / "0.tar", files)])
    assert [source.read(index).image for index in range(2)] == [picture(0), picture(2)]


class Reading:
    """A data set of the bytes of a source, for a real loader."""

    def __init__(self, source, order):
        self.source, self.order = source, order

    def __len__(self):
        return len(self.order)

    def __getitem__(self, index):
        return self.order[index], self.source.read(self.order[index]).image


def open_files(folder):
    """How many files of a folder this process holds open."""
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return sum(os.readlink(link).startswith(str(folder)) for link in links if os.path.exists(link))


def test_forked_processes_read_the_right_bytes(folder):
    source = TarSource([folder / "00002.tar"])
    expected = [source.read(index).image for index in range(12)]  # opens the file, which the children inherit
    order = np.random.default_rng(0).integers(0, 12, 20_000).tolist()
    loader = DataLoader(Reading(source, order), batch_size=100, num_workers=2, collate_fn=list)
    assert all(image == expected[index] for batch in loader for index, image in batch)


def test_few_files_stay_open(tmp_path):
    source = TarSource([write_tar(tmp_path / f"{n:02d}.tar", img2dataset_files(n, 2)) for n in range(24)])
    expected = [source.read(index).image for index in range(len(source))]
    assert open_files(tmp_path) == 16
    again = pickle.loads(pickle.dumps(source))
    assert [again.read(index).image for index in (0, 47, 20)] == [expected[index] for index in (0, 47, 20)]


def test_a_tar_that_changes_while_it_is_read_is_said(folder, tmp_path):
    path = tmp_path / "0.tar"
    path.write_bytes((folder / "00000.tar").read_bytes())
    source = TarSource([path])
    path.write_bytes(b"short")
    with pytest.raises(BadSampleError, match="has become shorter"):
        source.read(0)
    path.unlink()
    with pytest.raises(BadSampleError, match="unreadable"):
        pickle.loads(pickle.dumps(source)).read(0)


def test_a_fingerprint_is_that_of_names_and_sizes_wherever_they_lie(folder, tmp_path):
    (tmp_path / "moved").symlink_to(folder)
    first = open_all(folder).fingerprint
    assert open_all(tmp_path / "moved").fingerprint == first
    assert TarSource(find_tars(str(folder))[:2]).fingerprint != first
    assert open_all(folder, members=Members(captions=["json:caption"])).fingerprint != first
    files = list(img2dataset_files(0, 2))
    a = TarSource([write_tar(tmp_path / "a.tar", files)]).fingerprint
    (tmp_path / "other").mkdir()
    assert TarSource([write_tar(tmp_path / "other" / "a.tar", files)]).fingerprint == a
    files[2] = (files[2][0], b"another caption")
    assert TarSource([write_tar(tmp_path / "other" / "a.tar", files)]).fingerprint != a


def test_tars_of_several_folders_have_different_names(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_tar(tmp_path / name / "0.tar", img2dataset_files(0, 2))
    source = TarSource(find_tars([str(tmp_path / "one"), str(tmp_path / "two" / "*.tar")]))
    assert [source.key(index) for index in (0, 2)] == ["one/0.tar/000000000", "two/0.tar/000000000"]


def test_braces_wildcards_folders_and_lists(folder):
    all_of = [str(folder / f"{n:05d}.tar") for n in range(3)]
    assert find_tars(f"{folder}/{{00000..00002}}.tar") == all_of
    assert find_tars(f"{folder}/0*.tar") == all_of
    assert find_tars(str(folder)) == all_of
    assert find_tars([all_of[2], f"{folder}/0000{{0,1}}.tar"]) == [all_of[2], *all_of[:2]]
    for hidden in ("{pipe:mkdir a,pipe:mkdir b}", "pip{e:mkdir a,e:mkdir b}"):
        with pytest.raises(ValueError, match="begins with `pipe:` for all to see"):
            find_tars(hidden)
    assert find_tars("pipe:cat {a,b}.tar | gunzip") == ["pipe:cat a.tar | gunzip", "pipe:cat b.tar | gunzip"]


@pytest.mark.parametrize(
    ("places", "options", "message"),
    [
        ("{}/..", {}, "Expected tars in .* found none. Is it one level too high or too low?"),
        ("{}/9*.tar", {}, r"Expected tars in .*9\*.tar, found none"),
        ("{}/{{00000..00005}}.tar", {}, "Expected tars at all of the 6 places, missing: .*00003.tar"),
        ("https://example.org/0.tar", {}, "URLs and pipes are read as a stream, with `resampled: true`"),
        ("{}", {"members": Members(captions=["caption"])}, "have no .caption: they hold .jpg, .json, .txt. Say with"),
        ("{}", {"members": Members(image=["png"])}, "have no picture: they hold .jpg, .json, .txt"),
        ("{}", {"members": Members(label="cls"), "class_names": ["a"]}, "have no .cls"),
        ("{}", {"members": Members(label="json:label")}, "give both or neither, got 'json:label' and None"),
        ("{}", {"class_names": ["a"]}, "give both or neither, got None and"),
    ],
)
def test_mistakes_are_said_before_training(folder, places, options, message):
    with pytest.raises(ValueError, match=message):
        TarSource(find_tars(places.format(folder)), **options)


def test_compressed_tars_are_refused(folder, tmp_path):
    (tmp_path / "0.tar.gz").write_bytes(gzip.compress((folder / "00000.tar").read_bytes()))
    with pytest.raises(ValueError, match=r"Expected uncompressed tars, got .*0.tar.gz: unpack it"):
        TarSource([tmp_path / "0.tar.gz"])


@pytest.mark.parametrize("options", [{"captions": ["txt:caption"]}, {"image": []}, {"label": "cls:x"}])
def test_wrong_members_are_refused(options):
    with pytest.raises(ValueError, match="must name suffixes such as 'txt', or values such as 'json:caption'"):
        Members(**options)
