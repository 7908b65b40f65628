// Package evidence holds the words for what was taken from a host, and the
// proof that a stored copy of it is whole.
//
// The words, each with one meaning everywhere in Quicklime:
//
//   - An Item is one object of evidence: a memory image, a table, an archive.
//   - A Part is a stretch of an item as S3 stores it, with its hash.
//   - A Gap is a range of an image whose bytes are not what the host's memory
//     held, and why.
//   - A Manifest lists every item of a case on one instance, what is missing,
//     and what was done to the instance.
//
// Agents report in these words, the collector records them, and Verify holds
// the stored bytes against them.
package evidence
