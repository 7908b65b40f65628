// Package finding reads a GuardDuty finding as EventBridge delivers it and says
// which EC2 instances, if any, to act on. It does no I/O, so that the one
// judgement that isolates a machine can be tested in full.
//
// Parse is strict on what is used and tolerant of the rest: GuardDuty adds
// fields, sends many as null, and writes times both as strings and as numbers.
// Triage never acts on a sample, below the threshold, or on a finding whose
// resource is not a machine, even where it describes one.
//
// Sources: the GuardDuty user guide, "Creating custom responses to GuardDuty
// findings with Amazon CloudWatch Events" and "GuardDuty finding format".
package finding
