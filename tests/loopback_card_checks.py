"""What the Hub checks of a model card's metadata, as far as its documentation and error messages say."""

import re

import yaml


_FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_HUB_ID = re.compile(r"(?:[\w.-]{1,96}/)?[\w.-]{1,96}")
_LICENSES = {"apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "llama3.2", "gemma", "other", "unknown"}
_RELATIONS = {"adapter", "merge", "quantized", "finetune"}


def card_problems(content: str) -> list[str]:
    """Returns what is wrong with the metadata of a card; nothing, if all is well."""
    found = _FRONT_MATTER.match(content)
    if found is None:
        return ["no metadata"]
    try:
        data = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        return [f"the metadata are no YAML: {error}"]
    if not isinstance(data, dict):
        return ["the metadata are no mapping"]
    problems = []
    for name in ("tags", "datasets", "base_model"):
        values = data.get(name, [])
        values = [values] if isinstance(values, str) else values
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            problems.append(f'"{name}" must be texts')
        elif name != "tags" and not all(_HUB_ID.fullmatch(value) for value in values):
            problems.append(f'"{name}" with value {values} is not valid. Use an id from the Hub.')
    if data.get("license", "mit") not in _LICENSES:
        problems.append(f'"license" must be one of {sorted(_LICENSES)}')
    if data.get("base_model_relation", "adapter") not in _RELATIONS:
        problems.append(f'"base_model_relation" must be one of {sorted(_RELATIONS)}')
    for name in ("library_name", "pipeline_tag"):
        if not re.fullmatch(r"[a-z0-9-]+", str(data.get(name, "x"))):
            problems.append(f'"{name}" is not valid')
    return problems + [problem for model in data.get("model-index", []) for problem in _index_problems(model)]


def _index_problems(model: dict) -> list[str]:
    problems = [] if isinstance(model.get("name"), str) else ["model-index: a model has no name"]
    for result in model.get("results", []):
        if not isinstance(result.get("task", {}).get("type"), str):
            problems.append("model-index: a result has no task type")
        if not all(isinstance(result.get("dataset", {}).get(name), str) for name in ("type", "name")):
            problems.append("model-index: a dataset has no type or no name")
        for metric in result.get("metrics", []):
            if not isinstance(metric.get("type"), str) or not isinstance(metric.get("value"), int | float | str):
                problems.append("model-index: a metric has no type or no value")
    return problems
