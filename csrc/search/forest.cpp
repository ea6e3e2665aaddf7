// Filled by the search engine.
