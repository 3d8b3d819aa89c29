import os
from pathlib import Path

import pytest
from data_texts import make_texts

from golf_lightning.data.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_tokenizer(make_texts(60), tmp_path_factory.mktemp("tokenizer") / "small.model", vocab_size=400)


@pytest.fixture(scope="session")
def contest_tokenizer() -> Tokenizer:
    """The contest's 8192-piece tokenizer, which the project does not ship."""
    default = Path(__file__).parents[2].parent / "shared" / "tokenizer" / "fineweb_8192_bpe.model"
    path = Path(os.environ.get("GOLF_CONTEST_TOKENIZER", default))
    if not path.is_file():
        pytest.skip("the contest's tokenizer is not here; set GOLF_CONTEST_TOKENIZER to its .model file")
    return Tokenizer(path)
