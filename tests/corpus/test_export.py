"""The plan of the shards."""

import numpy as np

from hf_recipes.corpus.export import plan_shards


def test_a_shard_has_its_documents_without_duplicates_which_go_with_the_one_before(tmp_path):
    """a: x.x.. + .x. (x is a duplicate), b: three documents; shards of two."""
    (tmp_path / "near").mkdir()
    for task, duplicates in enumerate(([0, 2], [1], [])):
        np.array(duplicates, np.uint32).tofile(tmp_path / "near" / f"{task:06d}.remove")
    counts = [{"documents": documents, "characters": 10 * documents} for documents in (5, 3, 0, 3)]
    tasks = [{"corpus": name} for name in ("a", "a", "a", "b")]
    first = {"corpus": "a", "number": 1, "parts": [[0, 0, 4]]}
    second = {"corpus": "a", "number": 2, "parts": [[0, 4, 5], [1, 0, 2]]}
    third = {"corpus": "a", "number": 3, "parts": [[1, 2, 3]]}
    b = [{"corpus": "b", "number": 1, "parts": [[3, 0, 2]]}, {"corpus": "b", "number": 2, "parts": [[3, 2, 3]]}]
    assert plan_shards(counts, tasks, tmp_path, 2, 50) == [[first, second], [third], b]
    assert plan_shards(counts[2:3], tasks[2:3], tmp_path, 2, 50) == []
