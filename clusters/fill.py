"""Writes what a CloudFormation stack made into the <names> of a cluster file.

    python clusters/fill.py clusters/aws.yaml --stack raygrid [--region us-west-2]

The stack's output `SubnetA` replaces <subnet-a>, and so on. Needs boto3 and the AWS credentials that `ray up` uses too.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

NAME = re.compile(r"<([a-z][a-z0-9-]*)>")


def outputs(stack: str, region: str | None) -> dict[str, str]:
    """Outputs of a stack by the names that cluster files use."""
    import boto3

    found = boto3.client("cloudformation", region_name=region).describe_stacks(StackName=stack)["Stacks"][0]
    named = {item["OutputKey"]: item["OutputValue"] for item in found.get("Outputs", [])}
    return {re.sub(r"(?<=.)([A-Z])", r"-\1", key).lower(): value for key, value in named.items()}


def names(text: str) -> set[str]:
    """The <names> of a file, except in comments."""
    return set(NAME.findall("\n".join(line.split("#")[0] for line in text.splitlines())))


def fill(text: str, values: Mapping[str, str]) -> str:
    """The text with every <name> replaced. Raises ValueError, naming those that nothing is known of."""
    unknown = sorted(names(text) - set(values))
    if unknown:
        raise ValueError(f"nothing to put for <{'>, <'.join(unknown)}> (known: {', '.join(sorted(values)) or 'none'})")
    return NAME.sub(lambda match: values.get(match[1], match[0]), text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--stack", default="raygrid")
    parser.add_argument("--region", help="default: that of your AWS configuration")
    given = parser.parse_args(argv)
    try:
        text = given.file.read_text()
        if not names(text):
            print(
                f"{given.file}: nothing was replaced, since no <name> is left in it. To fill it from another stack, or"
            )
            print(f"from one that has changed, first take it as it came: git checkout -- {given.file}")
            return 0
        given.file.write_text(fill(text, outputs(given.stack, given.region)))
    except Exception as error:
        print(f"raygrid: {given.file} could not be filled from stack {given.stack}: {error}", file=sys.stderr)
        return 2
    print(f"{given.file} is ready: ray up {given.file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
