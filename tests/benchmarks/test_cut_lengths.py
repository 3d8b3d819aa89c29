"""The folder with the contest's lengths is a sound data folder with the same validation split."""

import numpy as np
from cut_lengths import cut_folder
from small_run import make_data
from ttt_speed import contest_lengths

from golf_lightning.data.check import check_data
from golf_lightning.data.shards import map_shard
from golf_lightning.evaluation.documents import DocumentStream


def test_training_text_has_the_lengths_and_validation_stays(tmp_path):
    source = make_data(tmp_path)
    entry = cut_folder(source, tmp_path / "cut", documents=30)
    tokens = np.asarray(map_shard(tmp_path / "cut" / "fineweb_train_000000.bin"))
    assert (entry.documents, entry.tokens) == (30, len(tokens))
    assert DocumentStream(tokens).targets.tolist() == contest_lengths(30, 1).tolist()
    assert check_data(tmp_path / "cut").faults == []
    name = "fineweb_val_000000.bin"
    assert (source / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
