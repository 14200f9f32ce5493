-- The lake's catalog lies in a database of its own beside the source.
CREATE DATABASE catalog;
