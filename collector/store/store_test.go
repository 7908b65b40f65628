package store_test

import (
	"testing"

	"github.com/quicklime-ir/quicklime/collector/store"
	"github.com/quicklime-ir/quicklime/collector/store/storetest"
)

func TestMemory(t *testing.T) {
	storetest.Run(t, func(*testing.T) store.Store { return store.Memory() })
}
