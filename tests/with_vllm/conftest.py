import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parent))


def pytest_collection_modifyitems(items):
    # Once an engine has drafted with n-grams, vLLM's CPU port starts no other one in the same process: also none of the suffix method.
    items.sort(key=lambda item: (item.path.name == "test_speculation.py", "suffix" not in item.name))
