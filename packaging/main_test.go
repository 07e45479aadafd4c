package packaging_test

import (
	"os"
	"testing"

	"github.com/sallyport/sallyport/internal/testnet"
)

func TestMain(m *testing.M) { os.Exit(testnet.Main(m)) }
