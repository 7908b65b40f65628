// Package artifact reads what a responder asks a running host for: processes,
// sockets, logins, modules, logs, histories and the files that persistence
// hides in.
//
// It exists because that evidence is gone in seconds, or lies in files that
// hostile users may have shaped. So nothing here writes to the host, no program
// is started but the few of the room command, everything is bounded, and whatever
// could not be read is itself put on record.
//
// Tables are JSON Lines, one object a row; their rows' types document each
// field. Files are one tar stream, laid out as [root]/… as UAC does; which they
// are, definitions say, in the format that the room definition reads. Bytes
// that came from the host are held as Text, which survives any bytes.
package artifact
