"""The CloudFormation template as its values, and what its policies allow."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Any

import yaml

PATH = Path(__file__).parents[2] / "infra" / "deploy" / "aws" / "dreamdrop.yaml"
BUCKET, ACCOUNT, REGION = "pictures", "123456789012", "us-east-1"
GIVEN = {
    "AWS::Partition": "aws",
    "AWS::AccountId": ACCOUNT,
    "AWS::Region": REGION,
    "BucketName": BUCKET,
    "Bucket": BUCKET,
    "Bucket.Arn": f"arn:aws:s3:::{BUCKET}",
    "AWS::NoValue": None,
}


class _Loader(yaml.SafeLoader):
    """Reads `!Ref x` as {"Ref": "x"}, and so on."""


def _function(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
    name = suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}"
    if isinstance(node, yaml.ScalarNode):
        return {name: loader.construct_scalar(node)}
    if isinstance(node, yaml.SequenceNode):
        return {name: loader.construct_sequence(node, deep=True)}
    assert isinstance(node, yaml.MappingNode)
    return {name: loader.construct_mapping(node, deep=True)}


_Loader.add_multi_constructor("!", _function)


class Template:
    """The template, with parameters that are given or have their defaults."""

    def __init__(self, **parameters: Any) -> None:
        document = yaml.load(PATH.read_text(encoding="utf-8"), _Loader)
        self.parameters: dict[str, Any] = document["Parameters"]
        self.resources: dict[str, Any] = document["Resources"]
        self._conditions = document["Conditions"]
        defaults = {name: entry["Default"] for name, entry in self.parameters.items() if "Default" in entry}
        self.values = defaults | GIVEN | parameters
        for name in ("Queue", "DeadLetters"):
            queue = self.value(self.resources[name]["Properties"]["QueueName"])
            self.values[f"{name}.Arn"] = f"arn:aws:sqs:{REGION}:{ACCOUNT}:{queue}"
            self.values[f"{name}.QueueName"] = queue
            self.values[name] = f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/{queue}"

    def properties(self, resource: str) -> Any:
        return self.value(self.resources[resource]["Properties"])

    def value(self, node: Any) -> Any:
        """A node with its functions resolved; a name that is not known here stays as "<name>"."""
        if isinstance(node, list):
            values = [self.value(item) for item in node]
            return [value for value in values if value is not None]
        if not isinstance(node, dict):
            return node
        if len(node) == 1:
            [(name, argument)] = node.items()
            match name:
                case "Ref" | "Fn::GetAtt":
                    return self.values.get(argument, f"<{argument}>")
                case "Fn::Sub":
                    return self._substituted(argument)
                case "Fn::If":
                    condition, yes, no = argument
                    return self.value(yes if self.value(self._conditions[condition]) else no)
                case "Fn::Equals":
                    return self.value(argument[0]) == self.value(argument[1])
                case "Fn::Not":
                    return not self.value(argument[0])
        values = {key: self.value(value) for key, value in node.items()}
        return {key: value for key, value in values.items() if value is not None}

    def _substituted(self, text: str) -> str:
        for part in text.split("${")[1:]:
            name = part.partition("}")[0]
            text = text.replace(f"${{{name}}}", str(self.values.get(name, f"<{name}>")))
        return text

    def role(self, name: str) -> list[Any]:
        """The statements of a role's policies."""
        arns = self.resources[name]["Properties"]["ManagedPolicyArns"]
        policies = [self.properties(arn["Ref"])["PolicyDocument"] for arn in arns]
        return [statement for policy in policies for statement in policy["Statement"]]


def allows(statements: list[Any], action: str, arn: str) -> bool:
    """Whether a statement allows an action on a resource, and none denies it. Conditions count as fulfilled."""
    effects = {
        statement["Effect"]
        for statement in statements
        if any(fnmatch.fnmatchcase(action, pattern) for pattern in _listed(statement["Action"]))
        and any(fnmatch.fnmatchcase(arn, pattern) for pattern in _listed(statement["Resource"]))
    }
    return effects == {"Allow"}


def _listed(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]
