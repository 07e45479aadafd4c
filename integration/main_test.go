package integration_test

import (
	"flag"
	"os"
	"testing"

	"github.com/sallyport/sallyport/internal/testnet"
)

func TestMain(m *testing.M) {
	flag.Set("test.parallel", "6") // not as many as processors: they mostly wait
	flag.Parse()
	os.Exit(testnet.Main(m))
}
