// Command agent is the lab's agent in a process of its own, so that it can be
// killed. It takes an AgentSpec, in JSON, as its argument.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/quicklime-ir/quicklime/packaging/lab/world"
)

func main() {
	var spec world.AgentSpec
	err := json.Unmarshal([]byte(os.Args[1]), &spec)
	if err == nil {
		err = spec.Run(context.Background(), os.Stderr)
	}
	fmt.Fprintln(os.Stderr, "agent:", err)
	os.Exit(1)
}
