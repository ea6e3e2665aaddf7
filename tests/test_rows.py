"""JSONL files that are filled in chunks: kills, damage, full disks, locks."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restrl import rows
from restrl.errors import RestrlError


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 12), st.integers(1, 4), st.data())
def test_appender_resumes_at_a_chunk_border_wherever_it_was_cut(tmp_path_factory, count, chunk, data):
    folder = tmp_path_factory.mktemp("rows")
    path = folder / "a.jsonl"
    work = [{"i": i, "text": "ä\n" * i} for i in range(count)]

    def fill(limit=None):
        with rows.Appender(path, chunk) as file:
            done = len(file.rows)
            assert file.complete or done % chunk == 0
            assert file.rows == work[:done]
            for start in range(done, count, chunk):
                if limit is not None and start >= limit:
                    return None
                file.append(work[start : start + chunk])
            return file.finish()

    fill(limit=data.draw(st.integers(0, count)))
    part = folder / "a.jsonl.part"
    if part.exists():
        raw = part.read_bytes()
        part.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    assert fill() == work
    assert rows.read_rows(path) == work
    assert not part.exists()
    assert fill() == work  # done already


def test_damaged_rows_name_file_and_line(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(RestrlError, match=r"x\.jsonl:2: not valid JSON"):
        rows.read_rows(path)
    path.write_text('{"a": 1}\n[1]\n')
    with pytest.raises(RestrlError, match=r"x\.jsonl:2: a row must be a JSON object, not list"):
        rows.read_rows(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(RestrlError, match="cannot be read"):
        rows.read_rows(path)
    with pytest.raises(RestrlError, match="no such file"):
        rows.read_rows(tmp_path / "missing.jsonl")
    (tmp_path / "x.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00broken")
    with pytest.raises(RestrlError, match="cannot be read"):
        rows.read_rows(tmp_path / "x.jsonl.gz")


def test_full_disk_is_one_sentence_and_keeps_what_was_written(tmp_path):
    script = """
from restrl import rows
file = rows.Appender("disk/a.jsonl", 1)
for i in range(1000):
    file.append([{"i": i, "text": "x" * 1000}])
"""
    fill = f"mkdir disk && mount -t tmpfs -o size=64k none disk && {sys.executable} -c '{script}'"
    command = f"{fill}; cat disk/* | wc -l"
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", command],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    if "unshare failed" in done.stderr or "mount:" in done.stderr:
        pytest.skip("this machine allows no user namespaces, so no disk can be filled")
    assert "a.jsonl.part: the disk is full; what is finished is kept" in done.stderr
    assert int(done.stdout) > 50


def test_two_processes_in_one_folder(tmp_path):
    with rows.lock(tmp_path):
        script = f"from restrl import rows\nwith rows.lock({str(tmp_path)!r}): pass"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert "another restrl process is working in this folder" in done.stderr
    with rows.lock(tmp_path):
        pass  # free again


def test_write_json_is_atomic(tmp_path):
    path = tmp_path / "a.json"
    rows.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        rows.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
