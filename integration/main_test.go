package integration_test

import (
	"flag"
	"os"
	"runtime"
	"strconv"
	"testing"

	"github.com/sallyport/sallyport/internal/testnet"
)

func TestMain(m *testing.M) {
	// One more than processors, because one test waits for two minutes. With more of
	// them side by side those that measure time fail.
	flag.Set("test.parallel", strconv.Itoa(runtime.GOMAXPROCS(0)+1))
	flag.Parse()
	os.Exit(testnet.Main(m))
}
