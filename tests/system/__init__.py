"""The whole: Postfix, packages, crashes, tools, manual, and the shape of the code."""
