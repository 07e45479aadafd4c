# Knocks at a host's ports, with nothing installed. Made by sallyport rules --powershell.
# For Windows PowerShell 5 and PowerShell 7.
#
#   powershell -ExecutionPolicy Bypass -File knock.ps1 HOST PORT...
#
# PORT is 7000 or 7000/tcp, 8500/udp, icmp or 37/icmp. HOST is a name, an IPv4 address
# or an IPv6 address without brackets. A knock has no answer: try the service behind it.
param(
    [Parameter(Mandatory = $true, Position = 0)]
    [string]$Server,
    [Parameter(Position = 1, ValueFromRemainingArguments = $true)]
    [string[]]$Ports
)
Set-StrictMode -Version 2
$ErrorActionPreference = 'Stop'

# What is knocked at where no PORT is given.
$Steps = @()

# A host that drops would keep a connection for 20 seconds, and Windows tries a port
# that refuses again after half a second: the limit is below that.
$WaitMilliseconds = 300

function Find-Address([string]$Name) {
    $address = $null
    if ([System.Net.IPAddress]::TryParse($Name, [ref]$address)) { return $address }
    return [System.Net.Dns]::GetHostAddresses($Name)[0]
}

function Send-Tcp($Address, [int]$Port) {
    $socket = New-Object System.Net.Sockets.Socket($Address.AddressFamily, [System.Net.Sockets.SocketType]::Stream, [System.Net.Sockets.ProtocolType]::Tcp)
    try {
        $started = $socket.BeginConnect($Address, $Port, $null, $null)
        [void]$started.AsyncWaitHandle.WaitOne($WaitMilliseconds)
    } catch [System.Net.Sockets.SocketException] {
        # A refusal is an answer: the packet was there.
    } finally {
        $socket.Close()
    }
}

function Send-Udp($Address, [int]$Port) {
    $client = New-Object System.Net.Sockets.UdpClient($Address.AddressFamily)
    try {
        $to = New-Object System.Net.IPEndPoint($Address, $Port)
        [void]$client.Send([byte[]](10), 1, $to)
    } finally {
        $client.Close()
    }
}

function Send-Ping($Address, [int]$Size) {
    $ping = New-Object System.Net.NetworkInformation.Ping
    try {
        [void]$ping.Send($Address, $WaitMilliseconds, (New-Object byte[] $Size))
    } catch [System.Net.NetworkInformation.PingException] {
        # No answer is what a hidden host gives.
    } finally {
        $ping.Dispose()
    }
}

# All are looked at before the first is made.
function Read-Step([string]$Text) {
    if ($Text -cmatch '\A(?:([0-9]{1,5})/)?icmp\z') {
        $size = 32
        if ($Text -cne 'icmp') { $size = [int]$Matches[1] }
        if ($size -le 65500) { return @{ Proto = 'icmp'; Number = $size } }
    } elseif ($Text -cmatch '\A([1-9][0-9]{0,4})(?:/(tcp|udp))?\z') {
        $proto = 'tcp'
        if ($Text -clike '*/udp') { $proto = 'udp' }
        $number = [int]$Matches[1]
        if ($number -le 65535) { return @{ Proto = $proto; Number = $number } }
    }
    [Console]::Error.WriteLine('knock.ps1: a step is 7000, 7000/tcp, 8500/udp, icmp or 37/icmp, with ports from 1 to 65535')
    exit 2
}

if ($Server -cnotmatch '\A[A-Za-z0-9.:%_][A-Za-z0-9.:%_-]*\z') {
    [Console]::Error.WriteLine('knock.ps1: the host must be a name or an address without brackets')
    exit 2
}
if (-not $Ports) { $Ports = $Steps }
if (-not $Ports) {
    [Console]::Error.WriteLine('knock.ps1: usage: knock.ps1 HOST PORT...')
    exit 2
}
$list = @(foreach ($port in $Ports) { Read-Step $port })
$address = Find-Address $Server
foreach ($step in $list) {
    switch ($step.Proto) {
        'tcp' { Send-Tcp $address $step.Number }
        'udp' { Send-Udp $address $step.Number }
        'icmp' { Send-Ping $address $step.Number }
    }
    # So that no packet overtakes the one before.
    Start-Sleep -Milliseconds 100
}
