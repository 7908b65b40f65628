package emulator

import (
	"net/http"
	"strings"
)

// serveSTS speaks STS's query protocol.
func (c *call) serveSTS() {
	if c.action != "GetCallerIdentity" {
		c.fail(http.StatusBadRequest, "InvalidAction", "Could not find operation "+c.action)
		return
	}
	if left := c.unread(); len(left) > 0 {
		c.fail(http.StatusBadRequest, "ValidationError", "unknown parameter "+strings.Join(left, ", "))
		return
	}
	type result struct {
		Arn     string
		UserId  string
		Account string
	}
	c.answer("GetCallerIdentityResponse", struct {
		Result result `xml:"GetCallerIdentityResult"`
	}{result{"arn:aws:sts::" + c.cfg.AccountID + ":assumed-role/quicklime-collector/lab", "AROALAB:lab", c.cfg.AccountID}})
}
