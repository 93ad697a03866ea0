"""The settings of a corpus."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from hf_recipes.core.settings import NonNegativeInt, PositiveInt, Share, at, setting
from hf_recipes.corpus.cleaning import MIN_CHINESE
from hf_recipes.corpus.executors import ExecutorArguments
from hf_recipes.data.schemas.registry import DOCUMENT_SCHEMAS


@dataclass
class CorpusArguments(ExecutorArguments):
    """Which documents, what is done to them, and what comes out."""

    input_files: list[str] = field(
        default_factory=list, metadata={"help": "Files, globs, folders or Hub ids, or name=one of them; each a source."}
    )
    output_dir: str | None = setting("Folder of the corpus; a folder in it for each source.")
    schema: str | None = setting(f"Shape of the rows ({', '.join(DOCUMENT_SCHEMAS)}); detected by default.")
    prompt_column: str | None = setting("Column of the text, or of the question.")
    response_column: str | None = setting("Column of the answer.")
    txt_documents: Literal["lines", "blank", "entry"] | None = setting(
        "Documents of a .txt file: lines, what blank lines part, or 词条： entries; detected by default."
    )
    control_characters: bool = setting("Take control characters out.", False)
    nfkc: bool = setting("Normalize to NFKC, but not Chinese punctuation, nor in programs.", False)
    simplify: bool = setting("Traditional → Simplified Chinese.", False)
    min_chars: NonNegativeInt | None = setting("Drop documents of fewer characters.")
    max_chars: PositiveInt | None = setting("Drop documents of more characters.")
    quality: bool = setting("Drop what the rules of hf_recipes/corpus/cleaning.py say is no good Chinese prose.", False)
    min_chinese: Share = setting("With --quality: the least share of Chinese characters.", MIN_CHINESE)
    exact_dedup: bool = setting("Drop documents that repeat an earlier one.", False)
    near_dedup: bool = setting("Drop documents that are nearly an earlier one (MinHash).", False)
    decontaminate: list[str] | None = setting("Evaluation files; documents that share text with them are dropped.")
    decontamination_ngram: Annotated[int, at(ge=5)] = setting(
        "So many words or Chinese characters in a row are shared text.", 20
    )
    privacy: bool = setting("Take personal data out.", False)
    privacy_names: list[str] | None = setting("With --privacy: names of people to take out.")
    shard_size: PositiveInt = setting("Documents in a shard.", 20_000)
    tokenize: bool = setting("Write token shards in place of text.", False)
    model_name_or_path: str | None = setting("With --tokenize: the model whose tokenizer it is.")
    document_end_token: str | None = setting("With --tokenize: what ends a document; by default the eos token.")
    trust_remote_code: bool = setting("Run code that comes with the tokenizer.", False)
    max_drop_ratio: Share = setting("Stop when more than this share of the rows cannot be used at all.", 0.01)
    cache_dir: str | None = setting("Where downloads are cached.")
    overwrite_output_dir: bool = setting("Start over in a folder that holds an earlier run.", False)

    def __post_init__(self):
        super().__post_init__()
        if not self.input_files:
            raise ValueError("--input_files is missing: the documents")
        if not self.output_dir:
            raise ValueError("--output_dir is missing: where the corpus goes")
        if self.schema is not None and self.schema not in DOCUMENT_SCHEMAS:
            raise ValueError(f"--schema {self.schema}: expected one of {', '.join(DOCUMENT_SCHEMAS)}")
        if (self.min_chars or 0) > (self.max_chars or float("inf")):
            raise ValueError(f"--min_chars {self.min_chars} is more than --max_chars {self.max_chars}")
        if self.tokenize != bool(self.model_name_or_path):
            raise ValueError("--tokenize and --model_name_or_path go together: name the model whose tokenizer it is")
        if self.document_end_token and not self.tokenize:
            raise ValueError("--document_end_token has no effect without --tokenize")
        if self.privacy_names and not self.privacy:
            raise ValueError("--privacy_names has no effect without --privacy")

    @property
    def repairs(self) -> list[str]:
        wanted = {
            "control characters": self.control_characters,
            "NFKC": self.nfkc,
            "traditional characters": self.simplify,
        }
        return [name for name, is_wanted in wanted.items() if is_wanted]
