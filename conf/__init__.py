"""What can be asked for: YAML groups, the typed schema they are checked against, and the rules that
follow from them alone (which band is fed where, which random stream belongs to what, how things fail).

The lowest layer: imported by every other package, imports none of them.
"""
