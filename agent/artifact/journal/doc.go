// Package journal reads the files of systemd-journald without systemd.
//
// It reads what can be read of files that are being written, cut short or
// damaged: entries come from the chain of entry arrays, as journald itself
// follows it, and from a sweep over all objects, which finds those that the
// chain lost or was made to lose. What cannot be read is told with its offset.
// Hashes and seals are not verified.
//
// The file is hostile: every size, count and offset is checked, chains only
// lead forward, and memory is bounded by the constants of this package.
//
// Source of the layout: systemd, docs/JOURNAL_FILE_FORMAT.md and
// src/libsystemd/sd-journal/journal-def.h.
package journal
