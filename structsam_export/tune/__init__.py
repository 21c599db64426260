"""The largest saving that one's images can afford: a rate and an MLP policy for every block, found and checked.

    sensitivity   every choice in one block alone, really evaluated on images of the selection half
    search        squared disagreements and costs are added up over the blocks (`search`), for every budget at once
    finalists     the best of the search, really evaluated on the whole selection half; one is taken
    held out      only the other half of the images, which nothing was chosen on, says what it loses

`command.run` is what the command calls.
"""
