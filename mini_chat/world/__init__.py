"""The embedded default: a small closed world in two languages, its texts, its dialogues and its exam.

`generate.write_world` writes every file of it; `lexicon` names what there is, `facts` says what is true,
`skills` holds one maker per skill, and `holdout` keeps the exam apart from everything that is trained on.
"""
