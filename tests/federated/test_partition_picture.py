"""Pictures of a partition say what it is."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch

from core.data import Image, Table, Text, load
from federated.partition import IID, Column, Labels, Partition, Quantity, make_partition
from federated.partition.picture import counts, effective_labels, summary, svg_picture, text_picture

DIGITS = load(Image(), "class")
SVG = "{http://www.w3.org/2000/svg}"


def some(clients: int = 4) -> Partition:
    return make_partition(Labels(per_client=3), DIGITS, Image(), clients, 0)


def test_counts_are_those_of_each_clients_labels() -> None:
    partition, targets = some(), DIGITS.splits["train"].targets
    table = counts(partition, DIGITS)
    for client in range(4):
        assert table[client].tolist() == torch.bincount(targets[partition.rows(client)], minlength=10).tolist()


def test_effective_labels_are_those_of_an_even_mix() -> None:
    table = torch.tensor([[5, 5, 5, 0], [9, 0, 0, 0], [1, 1, 1, 1]])
    assert effective_labels(table).tolist() == pytest.approx([3.0, 1.0, 4.0])


def test_a_terminal_sees_all_clients_or_twenty_of_them() -> None:
    few, many = (text_picture(some(count), DIGITS).splitlines() for count in (4, 50))
    assert len(few) == 2 + 4 and len(many) == 2 + 20 + 1
    assert few[0].startswith("4 clients, 1,437 examples: ") and few[1].endswith("0 to 9")
    assert many[-1].endswith("and 30 more")
    table = counts(some(), DIGITS)
    for row, line in zip(table, few[2:], strict=True):
        assert [mark != " " for mark in line[18:].ljust(10)] == (row > 0).tolist()


def test_a_block_is_higher_where_the_share_is_larger() -> None:
    targets = DIGITS.splits["train"].targets
    # all of label 0 for one client, the rest for the other: a ninth each, whose root is in the third eighth
    two = text_picture(Partition.of((targets > 0).long().numpy(), 2), DIGITS).splitlines()[2:]
    assert [line[18:] for line in two] == ["\u2588", " " + "\u2583" * 9]


def test_real_targets_and_text_have_pictures() -> None:
    table, text = Table(path="bundled:diabetes"), Text(path="bundled:english", limit_bytes=100_000)
    real, tokens = load(table, "real"), load(text, "token")
    assert "bin 1 to bin 10" in text_picture(make_partition(Quantity(), real, table, 5, 0), real)
    partition = make_partition(Column(), tokens, text, 6, 0)
    assert counts(partition, tokens).tolist() == partition.sizes[:, None].tolist()
    lines = text_picture(partition, tokens).splitlines()
    assert len(lines) == 1 + 6 and "labels" not in lines[0]
    assert max(line.count("\u2588") for line in lines) == 40
    assert ET.fromstring(svg_picture(partition, tokens)).tag == f"{SVG}svg"


def test_the_drawing_has_a_disc_for_each_count() -> None:
    table = counts(some(), DIGITS)
    root = ET.fromstring(svg_picture(some(), DIGITS))
    discs = list(root.iter(f"{SVG}circle"))
    assert len(discs) == int((table > 0).sum())
    largest = max(discs, key=lambda disc: float(disc.get("r", "0")))
    client, label = divmod(int(table.argmax()), 10)
    assert largest[0].text == f"client {client}, {label}: {table.max()}" and largest.get("r") == "9.0"
    area = {disc[0].text: float(disc.get("r", "0")) ** 2 for disc in discs}
    for place, count in enumerate(table.flatten().tolist()):
        if count:
            share = area[f"client {place // 10}, {place % 10}: {count}"] / 81
            assert share == pytest.approx(count / int(table.max()), abs=0.02)
    assert summary(table) in (root.get("aria-label") or "")


@pytest.mark.parametrize("clients", [1, 20])
def test_as_many_clients_as_fit_are_all_shown(clients: int) -> None:
    partition = make_partition(IID(), DIGITS, Image(), clients, 0)
    assert len(text_picture(partition, DIGITS).splitlines()) == 2 + clients
    assert "first" not in svg_picture(partition, DIGITS)


def test_a_drawing_is_small_and_safe_whatever_the_data(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    names = [f'<b>&"class" {i:02}' for i in range(60)]
    quoted = ['"' + name.replace('"', '""') + '"' for name in names]
    path.write_text("x,label\n" + "".join(f"{i},{quoted[i % 60]}\n" for i in range(1200)))
    source = Table(path=str(path), target="label")
    data = load(source, "class")
    partition = make_partition(IID(), data, source, 500, 0)
    drawing = svg_picture(partition, data)
    root = ET.fromstring(drawing)
    assert "<b>" not in drawing and len(drawing) < 200_000
    words = [text.text or "" for text in root.iter(f"{SVG}text")]
    assert any("first 60 of 500" in word for word in words)
    # sixty labels are drawn as thirty pairs
    assert sum(word.endswith(", ...") for word in words) == 30
