"""From raw Chinese text to a trained, evaluated and published language model."""

import logging

__version__ = "0.1.0"

# At import, where the kernels package is missing, it warns that its 4-bit CPU kernels could not be downloaded.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# Likewise, on a machine without an accelerator: this is where the user means to be.
logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
# transformers says so at every start with a tokenizer that pads: the model's settings then follow the tokenizer's.
logging.getLogger("transformers.trainer_utils").addFilter(
    lambda record: "new PAD/BOS/EOS tokens" not in record.getMessage()
)
