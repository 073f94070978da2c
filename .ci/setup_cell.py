# Set-up, the same in every notebook. No GPU is needed. Where mixofshow_lite is installed this does nothing; on Colab it
# takes about a minute, once, and moves nothing that Colab brings.
import importlib.util
import os
import subprocess
import sys

REPOSITORY = "https://github.com/mixofshow-lite/mixofshow_lite"
needed = {
    "mixofshow_lite": os.environ.get("MIXOFSHOW_SOURCE", f"git+{REPOSITORY}"),
    "resvg_py": "resvg_py",  # draws Pocket World
    "open_clip": "open_clip_torch",  # reads pictures for the scores; it needs the two below
    "ftfy": "ftfy",
    "timm": "timm",
}
missing = [source for module, source in needed.items() if importlib.util.find_spec(module) is None]
if "google.colab" in sys.modules and missing:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *missing], check=True)
    importlib.invalidate_caches()
elif needed["mixofshow_lite"] in missing:
    raise ModuleNotFoundError("Install mixofshow_lite first: `make lab` in a checkout does it and opens the notebooks.")
