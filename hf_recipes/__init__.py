"""From raw Chinese text to a trained, evaluated and published language model."""

import logging

__version__ = "0.1.0"

# At import, where the kernels package is missing, it warns that its 4-bit CPU kernels could not be downloaded.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# Likewise, on a machine without an accelerator: this is where the user means to be.
logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
