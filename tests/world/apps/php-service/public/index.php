<?php
echo mb_strtoupper("hello from php"), " ", ini_get("memory_limit"), "\n";
