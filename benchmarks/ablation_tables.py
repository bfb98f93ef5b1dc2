"""Tables and figure of the ablation."""


def markdown(record):
    return ""


def draw(record, path):
    pass
