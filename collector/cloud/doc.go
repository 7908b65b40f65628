// Package cloud makes the few EC2 calls that a case needs: look at an instance,
// protect it, image it, cut it off, and look again. It exists so that the steps
// of a case can be repeated at any point: every call first finds out what is
// already there, has a name of its own making to find it by, and waits out EC2's
// eventual consistency.
//
// One EC2 value serves one account and one region. Throttling and lost
// connections are the SDK's to retry; make its client with Retry.
package cloud
