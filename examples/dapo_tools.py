# /// script
# requires-python = ">=3.11"
# dependencies = ["trl-dapo[curves]"]
# ///
"""
Trains a model to use a calculator. A group is judged by the last answer of the whole conversation.

    python examples/dapo_tools.py                                                # a tiny model, on a CPU, minutes
    python examples/dapo_tools.py --config examples/tools/gsm8k_qwen3_0.6b.yaml   # GSM8K on one GPU, with vLLM
"""

import ast
import operator
import sys
from pathlib import Path

from trl import ModelConfig, TrlParser, get_peft_config

from trl_dapo import DAPOConfig, DAPOTrainer
from trl_dapo.command_line.training_run import (
    TrainingScriptArguments,
    complete_run,
    load_problems,
    name_data,
    use_model,
)
from trl_dapo.recipes.tool_tasks import make_products, prepare_tool_model, product_turns
from trl_dapo.rewards import accuracy_reward


DEFAULT_RECIPE = Path(__file__).parent / "tools" / "calculator.yaml"
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
OPERATORS |= {ast.USub: operator.neg}


def calculate(expression: str) -> str:
    """
    Computes an arithmetic expression.

    Args:
        expression: Numbers with +, -, *, / and brackets, for example (12 + 3) * 4.

    Returns:
        The value, or ? if it is no such expression.
    """

    def value(node):
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return node.value
        operands = [node.left, node.right] if isinstance(node, ast.BinOp) else [node.operand]
        return OPERATORS[type(node.op)](*map(value, operands))

    try:
        return f"{value(ast.parse(expression.strip(), mode='eval').body):.12g}"
    except (SyntaxError, ValueError, KeyError, AttributeError, ArithmeticError, RecursionError, MemoryError):
        # A tool that raises makes the completion unscorable. A call that makes no sense is the model's own error.
        return "?"


def main(script_args, args, model_args):
    """Trains a model with the calculator, evaluates it before and after, and saves it."""
    if script_args.dataset_name is None:
        model, split = str(Path(args.output_dir) / "tiny-model"), None
        with args.main_process_first(desc="warming up the tiny model"):
            if args.process_index == 0:
                prepare_tool_model(model, args.seed, product_turns)
        train_dataset = make_products(4000, args.seed)
        eval_dataset = make_products(script_args.num_eval_problems, args.seed + 1)
    else:
        train_dataset, eval_dataset, split = load_problems(script_args)
        model = use_model(args, model_args)

    trainer = DAPOTrainer(
        model=model,
        args=args,
        reward_funcs=accuracy_reward,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        tools=[calculate],
        peft_config=get_peft_config(model_args),
    )
    name_data(trainer, script_args, split)
    complete_run(trainer)


if __name__ == "__main__":
    if "--config" not in sys.argv:
        sys.argv += ["--config", str(DEFAULT_RECIPE)]
    main(*TrlParser((TrainingScriptArguments, DAPOConfig, ModelConfig)).parse_args_and_config())
