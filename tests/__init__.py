"""Unit, property and contract tests: no root, no network beyond loopback, no virtual machine."""
