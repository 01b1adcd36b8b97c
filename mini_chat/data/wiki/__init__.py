"""Wikipedia: reading its dumps in constant memory, and turning wikitext into text.

`dump` cuts a file into blocks of whole pages, `pages` takes the articles out of a block, `wikitext` cleans one, with a
file each for what is hard about it.
"""
